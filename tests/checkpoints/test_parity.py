"""Imported files give the numbers that the authors' code gave for them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convmae_deploy.checkpoints import import_original, load_classifier, load_encoder_state
from convmae_deploy.models import ConvMAEClassifier, build_convmae
from tests.original_files import (
    classifier_state,
    encoder_only_state,
    pretraining_state,
    probe_state,
    recorded,
    recorded_tensor,
    relative_error,
    training_checkpoint,
    write_pth,
)

TOLERANCE = 1e-5


def imported_classifier(state: object, directory: Path) -> ConvMAEClassifier:
    source = write_pth(directory / "original.pth", state)
    import_original(source, directory / "imported", num_heads=4)
    return load_classifier(directory / "imported")[0]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ConvMAEClassifier:
    return imported_classifier({"model": classifier_state()}, tmp_path_factory.mktemp("classifier"))


def assert_close(found: Tensor, file: str, name: str) -> None:
    assert relative_error(found, recorded_tensor(file, name)) <= TOLERANCE


def test_an_imported_classifier_gives_the_recorded_features_and_logits(classifier: ConvMAEClassifier) -> None:
    images = recorded_tensor("classifier", "input")
    with torch.no_grad():
        e1, e2, e3, e4 = classifier.encoder(images)
        assert_close(e1[:, :, ::7, ::7], "classifier", "stage1_every_7th_cell")
        assert_close(e2[:, :, ::7, ::7], "classifier", "stage2_every_7th_cell")
        assert_close(e3.flatten(2).transpose(1, 2)[:, ::13], "classifier", "stage3_every_13th_token")
        assert torch.equal(e4, F.max_pool2d(e3, 2))
        assert_close(classifier.forward_head(e3, pre_logits=True), "classifier", "pooled")
        assert_close(classifier(images), "classifier", "logits")


def test_an_imported_classifier_gives_the_recorded_loss_and_gradients(classifier: ConvMAEClassifier) -> None:
    logits = classifier(recorded_tensor("classifier", "input"))
    loss = F.cross_entropy(logits, recorded_tensor("classifier", "target"), label_smoothing=0.1)
    assert_close(loss, "classifier", "ce_smoothing01")
    names = [name for name, _ in classifier.named_parameters()]
    norms = {
        name.removeprefix("encoder."): gradient.norm()
        for name, gradient in zip(names, torch.autograd.grad(loss, list(classifier.parameters())), strict=True)
    }
    reference = recorded("classifier")
    expected = {
        name.decode(): norm for name, norm in zip(reference["grad_names"], reference["grad_norms"], strict=True)
    }
    assert norms.keys() == expected.keys()
    assert max(abs(norms[name].item() - expected[name]) / expected[name] for name in expected) <= TOLERANCE


@pytest.mark.parametrize(("pooling", "global_pool"), [("globalpool", "avg"), ("firsttoken", "token")])
def test_an_imported_linear_probe_gives_the_recorded_logits(pooling: str, global_pool: str, tmp_path: Path) -> None:
    model = imported_classifier(training_checkpoint(probe_state(pooling)), tmp_path)
    assert model.global_pool == global_pool
    with torch.no_grad():
        e3 = model.forward_features(recorded_tensor("linear_probes", "input"))
        assert_close(model.forward_head(e3, pre_logits=True), "linear_probes", f"{pooling}/features")
        assert_close(model.forward_head(e3), "linear_probes", f"{pooling}/logits")


def test_full_encoder_only_and_wrapped_files_give_the_same_encoder(tmp_path: Path) -> None:
    files = {
        "full": pretraining_state(),
        "encoder_only": {"model": encoder_only_state()},
        "wrapped": training_checkpoint(pretraining_state()),
    }
    states = []
    for name, content in files.items():
        import_original(write_pth(tmp_path / f"{name}.pth", content), tmp_path / name, num_heads=4)
        config, state = load_encoder_state(tmp_path / name, (224, 224))
        build_convmae(config).load_state_dict(state)
        states.append(state)
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
