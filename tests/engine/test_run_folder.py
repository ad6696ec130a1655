"""Run folders: what is refused, what is kept."""

import errno
import json
import resource
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine import run_folder
from convmae_deploy.engine.run_folder import RunFolder, optimisation_so_far, precision_so_far
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import build_convmae, nano


@dataclass(frozen=True)
class Config:
    epochs: int = 3
    workers: int = 2


def begin(folder: RunFolder, config: Config, *, resume: bool = False, photos: int = 4) -> None:
    folder.begin(config, seed=0, data={"photos": photos}, resume=resume, ignored=("workers",))


def test_a_second_run_in_the_same_folder_is_refused_unless_resumed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(folder, Config())
    with pytest.raises(ConvMAEError, match="holds a run already; add --resume"):
        begin(folder, Config())
    begin(folder, Config(workers=7), resume=True)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")
    with pytest.raises(ConvMAEError, match="expected a folder for the run at .*run, found a file; choose another"):
        begin(RunFolder(tmp_path / "run"), Config())


def test_resuming_with_another_setting_or_other_data_names_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(folder, Config())
    with pytest.raises(ConvMAEError, match="config epochs = 3 and is now given 5"):
        begin(folder, Config(epochs=5), resume=True)
    with pytest.raises(ConvMAEError, match="data photos = 4 and is now given 9"):
        begin(folder, Config(), resume=True, photos=9)
    several = r"config epochs = 3 and is now given 5, and differs in data photos; .* \(its command: python\S* -m "
    with pytest.raises(ConvMAEError, match=several):
        begin(folder, Config(epochs=5), resume=True, photos=9)


def test_resuming_with_as_many_files_of_other_names_or_labels_is_refused(tmp_path: Path) -> None:
    def begin_with(resume: bool, **facts: Any) -> None:
        RunFolder(tmp_path / "run").begin(Config(), seed=0, data=facts, resume=resume, ignored=())

    begin_with(False, train_photos=4)
    begin_with(True, train_photos=4, listing="a")  # a run of an earlier version has none
    begin_with(True, train_photos=4, listing="a")
    with pytest.raises(ConvMAEError, match="others than when .* was begun, though as many; bring back"):
        begin_with(True, train_photos=4, listing="b")
    with pytest.raises(ConvMAEError, match="train_photos = 4 and is now given 5"):
        begin_with(True, train_photos=5, listing="b")


def test_resuming_a_run_of_another_program_names_both(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(folder, Config())
    record = folder.description() | {"command": "python -m training.pretrain nano --out 'cut off"}
    (folder.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConvMAEError, match="holds a run of training.pretrain, with which .* cannot go on; choose"):
        begin(folder, Config(epochs=5), resume=True)


def test_resuming_what_was_never_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="found no run.json, so start it without --resume"):
        begin(RunFolder(tmp_path / "run"), Config(), resume=True)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ('{"config": {"ep', "run.json is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "must hold the config and the data of a run"),
        ('{"config": {}}', "must hold the config and the data of a run"),
    ],
)
def test_resuming_a_run_whose_record_is_damaged_is_one_sentence(tmp_path: Path, record: str, words: str) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(folder, Config())
    (tmp_path / "run" / "run.json").write_text(record)
    with pytest.raises(ConvMAEError, match=words):
        begin(folder, Config(), resume=True)


def test_a_run_from_a_checkout_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(package: str) -> str:
        if package == "convmae-deploy":
            raise PackageNotFoundError(package)
        return "1.2"

    monkeypatch.setattr(run_folder, "version", ask)
    begin(RunFolder(tmp_path / "run"), Config())
    versions = json.loads((tmp_path / "run" / "run.json").read_text())["versions"]
    assert (versions["convmae-deploy"], versions["torch"]) == ("not installed", "1.2")


def test_the_run_record_says_command_versions_and_seed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(folder, Config())
    description = folder.description()
    assert description["config"] == {"epochs": 3, "workers": 2}
    assert description["seed"] == 0
    assert description["versions"]["torch"] == torch.__version__.split("+")[0]
    assert shlex.split(description["command"])[1] == "-m"


def test_what_a_resumed_run_changes_is_kept_and_is_what_it_has_from_then_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(folder, Config())
    assert folder.changes(Config(workers=7), {"photos": 4}, ("workers",)) == {"workers": (2, 7)}
    begin(folder, Config(workers=7), resume=True)
    begin(folder, Config(workers=7), resume=True)
    begin(folder, Config(workers=1), resume=True)
    changed = [resumed["changed"] for resumed in folder.description()["resumed"]]
    assert changed == [{"workers": [2, 7]}, {}, {"workers": [7, 1]}]
    assert folder.description()["config"] == {"epochs": 3, "workers": 1}


def test_what_is_said_at_the_start_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for resume, line in ((False, "device: a"), (True, "device: b")):
        folder.begin(Config(), seed=0, data={}, resume=resume, ignored=(), start=[line])
    description = folder.description()
    assert (description["start"], description["resumed"][0]["start"]) == (["device: a"], ["device: b"])
    assert description["resumed"][0]["versions"] == description["versions"]


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        ('{"config": {"optimisation": {"epochs": 7, "micro_batch_size": 4, "base_lr": 0.1, "clip_grad": null}}}', 4),
        ('{"config": {"optimisation": {"epochs": "7", "micro_batch_size": true, "base_lr": 1, "clip_grad": [1]}}}', 1),
        ('{"config": {"optimisation": [7]}}', 0),
        ("[]", 0),
        ("{", 0),
        (None, 0),
    ],
)
def test_the_numbers_that_a_run_has_had_are_numbers(tmp_path: Path, record: str | None, kept: int) -> None:
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    found = optimisation_so_far(tmp_path)
    assert len(found) == kept and set(found) <= {"epochs", "micro_batch_size", "base_lr", "clip_grad"}
    assert precision_so_far(tmp_path) is None


@pytest.mark.parametrize("part", ["weights", "state"])
def test_a_disk_that_takes_no_more_leaves_the_checkpoint_that_was_there(tmp_path: Path, part: str) -> None:
    folder = RunFolder(tmp_path)
    record = CheckpointRecord(kind="features", variant="nano", model=nano())
    folder.save("last", {"a": torch.ones(2)}, record, {"progress": {"step": 5}})
    large = {"a": torch.zeros(100_000 if part == "weights" else 2)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # the system then refuses what is longer
    try:
        with pytest.raises(OSError) as caught:
            folder.save("last", large, record, {"progress": {"step": 6}, "optimizer": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    loaded = folder.load_last()
    assert loaded is not None and loaded[1] == {"progress": {"step": 5}}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_checkpoint_is_not_written_where_the_run_folder_is_gone(tmp_path: Path) -> None:
    record = CheckpointRecord(kind="features", variant="nano", model=nano())
    with pytest.raises(ConvMAEError, match="run is gone; a checkpoint without its run.json cannot be resumed"):
        RunFolder(tmp_path / "run").save("last", {"a": torch.ones(2)}, record)
    assert not list(tmp_path.iterdir())


def test_metrics_after_a_step_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log(step=step, loss=float(step))
    folder.forget_metrics_after(2)
    assert [line["step"] for line in folder.metrics()] == [1, 2]


def test_a_line_that_a_crash_cut_short_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log(step=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert folder.metrics() == [{"step": 1}]


def test_the_last_checkpoint_returns_weights_and_state(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_last() is None
    weights = build_convmae(nano()).state_dict()
    record = CheckpointRecord(kind="features", variant="nano", model=nano())
    folder.save("last", weights, record, {"progress": {"step": 5}})
    loaded = folder.load_last()
    assert loaded is not None
    assert loaded[1] == {"progress": {"step": 5}}
    assert all(torch.equal(loaded[0][name], value) for name, value in weights.items())


@pytest.mark.parametrize("line", [b"5", b"{}", b'{"step": "a"}', b"\xff", b"[" * 100_000, b"{"])
def test_a_damaged_line_of_the_metrics_is_one_sentence(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ConvMAEError, match="take that line out"):
        RunFolder(tmp_path).metrics()


def test_a_folder_of_something_else_is_no_run_and_hidden_files_are_nothing(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".run.json.1f.tmp").touch()
    RunFolder(tmp_path).check_is_new()
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConvMAEError, match="holds 'photos' and is no run: choose another --out, or an empty folder"):
        RunFolder(tmp_path).check_is_new()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "a line that is no JSON"),
        ("[1]", 'no object with a number "step"'),
        ('{"epoch": 1}', 'no object with a number "step"'),
        ('{"step": 1, "train_loss": "low"}', "a value that is no number"),
    ],
)
def test_a_damaged_line_of_metrics_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "val_loss": null}}\n{line}\n')
    with pytest.raises(ConvMAEError, match=f"metrics.jsonl has .*{words}"):
        RunFolder(tmp_path).metrics()


def test_a_last_checkpoint_that_is_gone_is_not_begun_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log(step=2, epoch=1)
    assert folder.load_last() is None  # stopped between the line and the checkpoint
    folder.log(step=4, epoch=2)
    with pytest.raises(ConvMAEError, match="last is gone after 2 epochs; bring it back or choose another --out"):
        folder.load_last()
