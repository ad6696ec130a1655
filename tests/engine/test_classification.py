"""What finetuning and the linear probe share."""

import pytest

from convmae_deploy.engine.classification import check_validation_epochs, initial_record
from convmae_deploy.errors import ConvMAEError


def test_a_record_is_for_the_image_size_asked_for_or_the_variants_own() -> None:
    sizes = {None: (128, 128), (64, 96): (64, 96)}
    for asked, expected in sizes.items():
        record = initial_record("nano", ("a", "b"), asked, licence="mine", global_pool="token")
        assert (record.kind, record.classes, record.global_pool) == ("classifier", ("a", "b"), "token")
        assert record.model.image_size == expected and record.licence.name == "mine"
        assert record.preprocessing is not None and record.preprocessing.crop == expected


def test_no_validation_at_all_is_refused() -> None:
    check_validation_epochs(1)
    with pytest.raises(ConvMAEError, match="validation_epochs must be at least 1; got 0"):
        check_validation_epochs(0)
