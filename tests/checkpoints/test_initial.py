"""Weights to start from, out of our checkpoints and the authors' files alike."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convmae_deploy.checkpoints import (
    CheckpointRecord,
    import_original,
    load_initial_encoder,
    load_pretraining,
    load_pretraining_norm,
    read_checkpoint,
    save_checkpoint,
)
from convmae_deploy.checkpoints.initial import load_initial_pretraining
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import build_convmae, nano, tiny
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from tests.original_files import (
    CONFIG,
    classifier_state,
    encoder_only_state,
    encoder_state,
    pretraining_state,
    training_checkpoint,
    write_pth,
)

DECODER = PretrainingConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_ratio=2.0)


def nano_pretraining_file(path: Path) -> Path:
    """A full pretraining file of a variant whose heads are known; written with our shapes, which the importer takes."""
    torch.manual_seed(0)
    decoder = PretrainingConfig(decoder_width=24, decoder_depth=1, decoder_heads=6, decoder_mlp_ratio=2.0)
    state = build_pretraining(nano(), decoder).state_dict()
    return write_pth(path, {"model": {name.removeprefix("encoder."): value for name, value in state.items()}})


@pytest.mark.parametrize(
    "content", [encoder_only_state(), pretraining_state(), training_checkpoint(pretraining_state())]
)
def test_the_pretraining_norm_is_the_same_from_a_file_and_from_its_import(
    content: dict[str, object], tmp_path: Path
) -> None:
    source = write_pth(tmp_path / "a.pth", content)
    import_original(source, tmp_path / "imported", num_heads=4)
    for path in (source, tmp_path / "imported"):
        norm = load_pretraining_norm(path)
        assert norm is not None and norm.keys() == {"weight", "bias"}
        assert torch.equal(norm["weight"], encoder_only_state()["norm.weight"])
        assert torch.equal(norm["bias"], encoder_only_state()["norm.bias"])


def test_the_pretraining_norm_of_our_own_pretraining_is_found_in_its_run_folder(tmp_path: Path) -> None:
    model = build_pretraining(CONFIG, DECODER)
    torch.nn.init.normal_(model.norm.weight)
    record = CheckpointRecord(kind="pretraining", variant="custom", model=CONFIG, pretraining=DECODER)
    save_checkpoint(tmp_path / "run" / "last", model.state_dict(), record)
    norm = load_pretraining_norm(tmp_path / "run")
    assert norm is not None and torch.equal(norm["weight"], model.norm.weight)


def test_there_is_no_pretraining_norm_in_a_classifier_or_a_bare_encoder(tmp_path: Path) -> None:
    assert load_pretraining_norm(write_pth(tmp_path / "classifier.pth", classifier_state())) is None
    assert load_pretraining_norm(write_pth(tmp_path / "encoder.pth", encoder_state())) is None
    classifier = build_classifier(CONFIG, num_classes=2).state_dict()
    record = CheckpointRecord(kind="classification", variant="custom", model=CONFIG, classes=("a", "b"))
    save_checkpoint(tmp_path / "classifier", classifier, record)
    assert load_pretraining_norm(tmp_path / "classifier") is None


def test_half_a_pretraining_norm_is_refused(tmp_path: Path) -> None:
    for name, changed in {"missing": None, "narrow": torch.zeros(5)}.items():
        state: dict[str, Tensor | None] = {**encoder_only_state(), "norm.bias": changed}
        content = {key: value for key, value in state.items() if value is not None}
        with pytest.raises(ConvMAEError, match=r"norm.weight and norm.bias of \(96,\)"):
            load_pretraining_norm(write_pth(tmp_path / f"{name}.pth", content))


def test_the_encoder_of_an_original_file_comes_without_the_norm(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "a.pth", encoder_only_state())
    state, report = load_initial_encoder(source, CONFIG)
    build_convmae(CONFIG).load_state_dict(state)
    assert not any(line.startswith("wrote ") for line in report)


@pytest.mark.slow
def test_an_original_pretraining_file_gives_the_model_of_its_import(tmp_path: Path) -> None:
    source = nano_pretraining_file(tmp_path / "a.pth")
    import_original(source, tmp_path / "imported")
    expected = load_pretraining(tmp_path / "imported", image_size=(64, 96))[0].state_dict()
    for path in (source, tmp_path / "imported"):
        model, record, report = load_initial_pretraining(path, image_size=(64, 96))
        assert record.model.image_size == (64, 96) and record.variant == "nano"
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
        assert any(line.startswith("assumed decoder_heads 6") for line in report) == (path == source)


def test_an_original_file_without_a_decoder_is_refused_by_its_own_name(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "a.pth", build_convmae(nano()).state_dict())
    with pytest.raises(ConvMAEError, match=r"must hold a pretraining model with its decoder and holds: features"):
        load_initial_pretraining(source)


def test_the_checkpoint_of_an_encoder_alone_holds_the_norm(tmp_path: Path) -> None:
    import_original(write_pth(tmp_path / "a.pth", encoder_only_state()), tmp_path / "out", num_heads=4)
    record, state = read_checkpoint(tmp_path / "out")
    assert record.kind == "features" and {"norm.weight", "norm.bias"} <= state.keys()


def test_an_encoder_of_another_variant_is_refused_by_the_names_of_both(tmp_path: Path) -> None:
    record = CheckpointRecord(kind="features", variant="nano", model=nano())
    save_checkpoint(tmp_path / "nano", build_convmae(nano()).state_dict(), record)
    wanted = "an encoder of the variant tiny; .*nano holds the variant nano"
    with pytest.raises(ConvMAEError, match=wanted):
        load_initial_encoder(tmp_path / "nano", replace(tiny(), image_size=(96, 96)))


def test_the_head_of_a_probe_alone_is_no_encoder(tmp_path: Path) -> None:
    record = CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("a", "b"))
    save_checkpoint(tmp_path / "last", {"head.weight": torch.zeros(2, 192)}, record)
    with pytest.raises(ConvMAEError, match="holds a probe's head alone; give the run's `best`"):
        load_initial_encoder(tmp_path / "last", nano())
