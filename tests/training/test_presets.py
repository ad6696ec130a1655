"""Every preset of every training program: its augmentation drawn thousands of times, its model, its first updates.

All in fp32, since Accelerate allows a process one precision; `benchmarks.presets` runs them in their own.
"""

import importlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from timm.data import create_transform
from torch import Tensor

from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.data import augmentation
from convmae_deploy.data.augmentation import AugmentationConfig, batch_mixing, normalised
from convmae_deploy.data.listing import LISTING
from convmae_deploy.data.segmentation_folder import IGNORE
from convmae_deploy.engine.training_config import RunConfig
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig
from convmae_deploy.models.detector import DETECTORS, DetectorConfig
from convmae_deploy.models.segmenter import SegmenterConfig
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.vit import build_encoder, variant_config
from tests.training.preset_media import PREPARE, Media, make_media
from training import linprobe, pretrain, video_pretrain

pytestmark = pytest.mark.slow  # together

DRAWS = 1000  # of each augmentation, twice as many of those with RandAugment:
# the paper's for finetuning asked Pillow once in 660 photos for what it refuses
SIDE = 32  # pixels of what is drawn
OURS = ("nano", "tiny", "overfit", "vit_nano")  # presets for a CPU
TEST_MODEL = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2)
TEST_DETECTOR = DetectorConfig(channels=16, fc_width=16, norm="layer", regions_per_image=32)
AUGMENTATION = ("augmentation", "crop_scale", "flip")  # what a program's configuration may call it


def presets() -> Iterator[tuple[str, str, Any]]:
    """Program, preset and configuration of all there are."""
    for program in PREPARE:
        for name, (_, config) in importlib.import_module(f"training.{program}").PRESETS.items():
            yield program, name, config


def named_presets(*, ours: bool) -> list[Any]:
    """Program and configuration of every preset that is for a CPU, or of all others."""
    return [
        pytest.param(program, config, id=f"{program} {name}")
        for program, name, config in presets()
        if (name in OURS) is ours
    ]


def augmentation_of(config: Any) -> tuple[Any, ...]:
    """What makes one preset's augmentation equal another's."""
    return tuple(getattr(config, name, None) for name in AUGMENTATION)


def distinct_augmentations() -> list[Any]:
    """One preset of each program and augmentation, named by all that share it."""
    groups: dict[tuple[Any, ...], list[tuple[str, Any]]] = {}
    for program, name, config in presets():
        groups.setdefault((program, *augmentation_of(config)), []).append((name, config))
    return [
        pytest.param(key[0], members[0][1], id=f"{key[0]}: {' '.join(name for name, _ in members)}")
        for key, members in groups.items()
    ]


def drawing(program: str, config: Any, data: Path, out: Path) -> Any:
    """A preset whose augmentation is as it is and all else as small as can be."""
    changes: dict[str, Any] = {
        "detector" if program == "detect" else "variant": "nano_fpn" if program == "detect" else "nano",
        "data": str(data) if program == "pretrain" else data,
        "image_size": (SIDE, SIDE),
        "run": replace(config.run, out=out, workers=0, precision="fp32"),
    }
    if program == "pretrain":
        changes["model"] = replace(pretrain.nano().model, masking=config.model.masking)
    if program == "finetune":
        changes["train_size"] = (SIDE, SIDE)
    if program == "linprobe":
        changes |= {"init": data, "cached_views": 0}
    if program == "segment":
        changes["model"] = SegmenterConfig(channels=8, auxiliary_channels=4)
    if program.startswith("video"):
        changes["video"] = VideoConfig(frames=2)
    if program == "video_pretrain":
        changes["model"] = video_pretrain.nano().model
    if program == "video_finetune":
        changes["copies"] = 10  # a video is decoded once for all of them
    return replace(config, **changes)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return make_media(tmp_path_factory.mktemp("media"))


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "nano", lambda: TEST_MODEL)
    monkeypatch.setitem(DETECTORS, "nano_fpn", lambda: (TEST_MODEL, TEST_DETECTOR))
    monkeypatch.setattr(linprobe, "start_from", lambda *_: None)


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize(("program", "config"), distinct_augmentations())
def test_thousands_of_draws_are_finite_and_of_the_right_shape(
    program: str, config: Any, media: Media, tmp_path: Path
) -> None:
    loop = PREPARE[program](drawing(program, config, media.of(program), tmp_path / "run"))
    drawn = epoch = 0
    while drawn < DRAWS * (2 if program.endswith("finetune") else 1):
        for images, extra, unreadable in (part for step in loop.source.epoch(epoch, 0) for part in step):
            assert unreadable == 0
            check_images(program, normalised(images, loop.run.record.preprocessing))
            check_extra(program, extra, len(images))
            drawn += len(images)
        epoch += 1


def check_images(program: str, images: Tensor) -> None:
    frames = (2,) if program.startswith("video") else ()
    assert images.shape[1:] == (3, *frames, SIDE, SIDE) and images.dtype == torch.float32
    assert torch.isfinite(images).all()


def check_extra(program: str, extra: Any, count: int) -> None:
    """What belongs to the images: noise of masks, labels, label maps, or objects."""
    assert len(extra) == count
    if program == "detect":
        for target in extra:
            boxes, masks = target["boxes"], target["masks"]
            assert torch.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= SIDE).all()
            assert masks.shape == (len(boxes), SIDE, SIDE) and masks.flatten(1).any(1).all()
            assert len(target["labels"]) == len(boxes)
    elif program == "segment":
        assert extra.shape[1:] == (SIDE, SIDE) and set(extra.unique().tolist()) <= {0, 1, 2, IGNORE}
    elif "pretrain" in program:
        assert extra.dtype == torch.float32 and (extra >= 0).all() and (extra < 1).all()
    else:
        assert set(extra.tolist()) <= {0, 1}


def distinct_mixings() -> list[Any]:
    """One augmentation for each mixing of a batch, of photos and of clips."""
    configs = {(config.augmentation, program) for program, _, config in presets() if program.endswith("finetune")}
    mixings = {
        (program, found.mixup, found.cutmix, found.label_smoothing): found
        for found, program in configs
        if found.mixup or found.cutmix
    }
    return [pytest.param(program, found, id=program) for (program, *_), found in sorted(mixings.items(), key=str)]


@pytest.mark.parametrize(("program", "config"), distinct_mixings())
def test_thousands_of_mixed_batches_are_finite_with_targets_that_sum_to_one(
    program: str, config: AugmentationConfig
) -> None:
    mixing = batch_mixing(config, 3)
    assert mixing is not None
    shape = (4, 3, 2, 16, 24) if program.startswith("video") else (4, 3, 16, 24)
    inputs, labels = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    np.random.seed(0)
    for _ in range(DRAWS):
        mixed, targets = mixing(inputs.clone(), labels)
        assert mixed.shape == shape and torch.isfinite(mixed).all()
        assert targets.shape == (4, 3) and torch.allclose(targets.sum(1), torch.ones(4), atol=1e-5)


class WithoutNumbers(Accelerator):  # type: ignore[misc]
    """Takes models whose parameters have shapes alone."""

    @property
    def device(self) -> torch.device:
        return torch.device("meta")


@pytest.fixture
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_on_cpu(**options: Any) -> Any:
        with torch.device("cpu"):
            return create_transform(**options)

    monkeypatch.setattr(RunConfig, "accelerator", lambda _: WithoutNumbers(mixed_precision="no"))
    monkeypatch.setattr(augmentation, "create_transform", made_on_cpu)  # it holds the mean and the deviation
    monkeypatch.setattr(linprobe, "start_from", lambda *_: None)
    monkeypatch.setattr(linprobe, "frozen_digest", lambda _: "")


@pytest.mark.usefixtures("without_numbers")
@pytest.mark.parametrize(("program", "config"), named_presets(ours=False))
def test_every_preset_has_a_model_an_optimizer_and_the_data_of_its_first_update(
    program: str, config: Any, media: Media, tmp_path: Path
) -> None:
    """As configured, but for the precision and the processes that decode; parameters have shapes and no numbers."""
    whole = replace(config, **where(program, config, media, tmp_path))
    with torch.device("meta"):
        loop = PREPARE[program](whole)
    assert len(loop.run.folder.description()["data"][LISTING]) == 64
    groups = loop.run.optimizer.param_groups
    trained = [parameter for parameter in loop.run.model.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained) > 0
    assert all(parameter.is_meta for parameter in trained)
    micro_batches = next(loop.source.epoch(0, 0))
    assert sum(unreadable for *_, unreadable in micro_batches) == 0
    for images, _, _ in micro_batches:
        assert images.shape[-2:] == loop.run.record.model.image_size or program == "detect"
        assert torch.isfinite(images).all()


def where(program: str, config: Any, media: Media, folder: Path) -> dict[str, Any]:
    """What a user has to say besides the preset."""
    data = media.of(program)
    said = {
        "data": str(data) if program == "pretrain" else data,
        "run": replace(config.run, out=folder / "run", workers=0, precision="fp32"),
    }
    return said | ({"init": folder / "init"} if program == "linprobe" else {})


@pytest.mark.parametrize(("program", "config"), named_presets(ours=True))
def test_presets_for_a_cpu_take_two_updates(
    program: str, config: Any, media: Media, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all that they are but for the size of the detector's input, the number of photos and that of epochs."""
    if program == "linprobe":
        save_encoder(config, tmp_path / "init")
    said = where(program, config, media, tmp_path)
    optimisation = replace(config.optimisation, epochs=1, batch_size=4, micro_batch_size=4)
    said |= {"optimisation": optimisation} | ({"image_size": (96, 96)} if program == "detect" else {})
    loop = PREPARE[program](replace(config, **said))
    assert loop.fit() == 0
    (line,) = loop.run.folder.metrics()
    assert line["step"] == 2 and line["skipped_updates"] == line["unreadable_train"] == 0
    assert math.isfinite(line["train_loss"])
    assert "warm-up takes 1 of the 2 updates" in capsys.readouterr().out


def save_encoder(config: Any, path: Path) -> None:
    """An encoder with fresh weights of a linear probe's variant."""
    architecture = variant_config(config.variant, None)
    record = CheckpointRecord(kind="features", variant=config.variant, model=architecture)
    save_checkpoint(path, build_encoder(architecture).state_dict(), record)
