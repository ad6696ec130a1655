"""What finetuning and the linear probe share."""

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.engine.classification import Accuracy, initial_record
from convmae_deploy.engine.evaluation import Validation


def test_a_record_is_for_the_image_size_asked_for_or_the_variants_own() -> None:
    sizes = {None: (128, 128), (64, 96): (64, 96)}
    for asked, expected in sizes.items():
        record = initial_record("nano", ("a", "b"), asked, licence="mine", global_pool="token")
        assert (record.kind, record.classes, record.global_pool) == ("classification", ("a", "b"), "token")
        assert record.model.image_size == expected and record.licence.name == "mine"
        assert isinstance(record.preprocessing, Preprocessing) and record.preprocessing.crop == expected


def test_an_accuracy_is_told_with_the_names_of_metrics_jsonl() -> None:
    scores = {"loss": 0.25, "top1": 50.0, "top5": 75.5}
    found = Validation(scores=scores, summary=Accuracy().summary(scores), images=8, unreadable=1)
    assert found.numbers == {"val_loss": 0.25, "val_top1": 50.0, "val_top5": 75.5, "unreadable_val": 1}
    assert found.summary == "top-1 50.00 %, top-5 75.50 %"
