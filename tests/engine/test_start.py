"""What a training says before its first update."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from convmae_deploy.engine import start
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.engine.start import changes_in_words, data_in_words, start_lines, updates_in_words
from tests.engine.updates import Updates

CONFIG = OptimisationConfig(epochs=40, batch_size=64, micro_batch_size=64, base_lr=4e-3, warmup_epochs=3)


def test_the_lines_say_device_precision_data_updates_and_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "processor", lambda: "Processor of a laptop")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    facts = {"classes": ["a", "b"], "train_photos": 9469, "val_photos": 1309}
    steps = Updates(9469, batch_size=64, micro_batch_size=64).steps
    assert start_lines(Accelerator(cpu=True), "fp32, as --precision says", facts, CONFIG, steps) == [
        "device: CPU (Processor of a laptop, 4 threads); precision fp32, as --precision says",
        "data: 9469 photos to train on, 2 classes, 1309 to validate on",
        "updates: 147 an epoch, each of 64 photos; 61 photos are left over in every epoch, other ones each time; "
        "epochs: 40",
        "learning rate: 0.001, which is --base-lr 0.004 for 256 photos, times 64 of an update / 256",
    ]


def test_the_learning_rate_is_that_of_what_an_update_really_holds() -> None:
    asked = OptimisationConfig(epochs=2, batch_size=1024, base_lr=4e-3)
    steps = Updates(16, batch_size=1024).steps
    lines = start_lines(Accelerator(cpu=True), "fp32", {"train_photos": 16}, asked, steps)
    assert (
        lines[2]
        == "updates: 1 an epoch, each of 16 photos (there are no more, where --batch-size says 1024); epochs: 2"
    )
    assert lines[3].startswith("learning rate: 0.00025, which is --base-lr 0.004")
    assert lines[4].startswith("warm-up takes 1 of the 2 updates")


@pytest.mark.parametrize(
    ("files", "batch_size", "micro_batch_size", "processes", "words"),
    [
        (31, 16, 16, 1, "1 an epoch, each of 16 videos; 15 videos are left over in every epoch"),
        (32, 16, 16, 1, "2 an epoch, each of 16 videos; epochs: 40"),
        (32, 16, 5, 1, "2 an epoch, each of 16 videos, accumulated over 4 micro-batches; epochs: 40"),
        (
            99,
            16,
            8,
            3,
            "6 an epoch, each of 15 videos (as many for each of 3 processes, where --batch-size says 16); 9",
        ),
    ],
)
def test_what_an_epoch_leaves_out_is_said(
    files: int, batch_size: int, micro_batch_size: int, processes: int, words: str
) -> None:
    steps = Updates(files, batch_size=batch_size, micro_batch_size=micro_batch_size, processes=processes).steps
    config = OptimisationConfig(epochs=40, batch_size=batch_size, micro_batch_size=micro_batch_size)
    assert updates_in_words(config, steps, "videos").startswith(words)


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        ({"train_photos": 31}, "photos", "31 photos to train on"),
        ({"shards": 3, "samples": 3000}, "photos", "3000 photos to train on, in 3 shards"),
        (
            {"classes": ["a"], "train_videos": 5, "val_videos": 2},
            "videos",
            "5 videos to train on, 1 classes, 2 to validate on",
        ),
        (
            {"classes": ["a", "b"], "train_photos": 5, "val_photos": 2, "train_objects": 9},
            "photos",
            "5 photos to train on, 9 objects in them, 2 classes, 2 to validate on",
        ),
    ],
)
def test_the_data_are_told_as_far_as_they_are_known(facts: dict[str, Any], kind: str, words: str) -> None:
    assert data_in_words(facts, kind) == words


def test_what_a_resumed_run_has_otherwise_is_told_with_what_it_does() -> None:
    changes = {"optimisation.epochs": (1, 5), "run.workers": (2, 0), "processes": (8, 4), "run.resume": (False, True)}
    epochs, workers, processes = changes_in_words(changes)
    assert epochs == "changed from here on: --epochs 1 to 5 (the learning rate falls over that many)"
    assert workers == "changed from here on: --workers 2 to 0"
    assert processes.startswith("changed from here on: processes 8 to 4 (an update holds as many files;")
