"""Our checkpoint folder: what is read of it, and what a damaged one says."""

import json
from pathlib import Path

import pytest
import torch

from convmae_deploy.checkpoints import (
    find_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from convmae_deploy.checkpoints.native import EARLIER_KINDS, CheckpointKind
from convmae_deploy.errors import ConvMAEError
from tests.checkpoints.conftest import RECORD


def test_a_run_folder_means_its_best_checkpoint_then_its_last(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConvMAEError, match="run folder or a checkpoint"):
        find_checkpoint(run)
    checkpoint.rename(run / "last")
    assert find_checkpoint(run) == run / "last"
    save_checkpoint(run / "best", {}, RECORD)
    assert find_checkpoint(run) == run / "best"


def test_a_file_of_the_authors_is_told_what_makes_a_checkpoint_of_it(tmp_path: Path) -> None:
    (tmp_path / "convmae_base.pth").write_bytes(b"PK")
    with pytest.raises(ConvMAEError, match="found a file, which convmae import turns into one"):
        find_checkpoint(tmp_path / "convmae_base.pth")


def test_a_config_with_an_unknown_field_or_impossible_numbers_is_refused(checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    original = config.read_text()
    config.write_text(original.replace('"variant"', '"varient"'))
    with pytest.raises(ConvMAEError, match="config.json is not a valid checkpoint config: "):
        read_checkpoint(checkpoint)
    config.write_text(original.replace('"num_heads": 4', '"num_heads": 5'))
    with pytest.raises(ConvMAEError, match="multiple of num_heads"):
        read_checkpoint(checkpoint)


def test_damaged_or_missing_weights_are_one_sentence(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(ConvMAEError, match="model.safetensors cannot be read"):
        read_checkpoint(checkpoint)
    weights.unlink()
    with pytest.raises(ConvMAEError, match="model.safetensors cannot be read"):
        read_checkpoint(checkpoint)


def of_kind(folder: Path, kind: object) -> Path:
    """A checkpoint whose config gives its kind in other words."""
    save_checkpoint(folder / "a", {"weight": torch.zeros(1)}, RECORD)
    config = folder / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"kind": kind}))
    return folder / "a"


@pytest.mark.parametrize(("earlier", "kind"), EARLIER_KINDS.items())
def test_checkpoints_written_before_kinds_were_named_like_tasks_are_read(
    tmp_path: Path, earlier: str, kind: CheckpointKind
) -> None:
    assert read_checkpoint(of_kind(tmp_path, earlier))[0].kind == kind


def test_a_kind_that_is_no_word_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match=r"config.json is not a valid checkpoint config: kind: Input should be"):
        read_checkpoint(of_kind(tmp_path, ["encoder"]))


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "saved", {"weight": torch.zeros(1)}, RECORD)
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "saved").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_an_existing_checkpoint_is_not_replaced(checkpoint: Path) -> None:
    with pytest.raises(ConvMAEError, match="exists already"):
        save_checkpoint(checkpoint, {}, RECORD)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
