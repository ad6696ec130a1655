"""What makes the host wait for a GPU in an update of each training program, counted on one that computes nothing.

Run as a program it prints, as JSON, {part: {program: {operation: times}}}: the forward passes on CUDA in bf16 and
fp16, evaluation, and whole updates on the device that stands in for it, in bf16 and, with its scaler, in fp16. In a
process of its own, as that device is registered for good. Before these it prints the graphs and graph breaks of
torch.compile over batches of several sizes, of the programs that it is given by name.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.data.augmentation import AugmentationConfig, batch_mixing, normalised
from convmae_deploy.engine.classification import FinetuneRecipe
from convmae_deploy.engine.optimisation import LarsConfig, OptimisationConfig, build_adamw, build_lars
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.reconstruction import ReconstructionRecipe
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import nano
from convmae_deploy.models.detector import build_detector, nano_fpn
from convmae_deploy.models.masking import MASKING
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.models.segmenter import SegmenterConfig, build_segmenter
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import VideoPretrainingConfig, build_video_pretraining
from tests.engine.traced_device import host_waits, moved, stand_in
from training.detect import DetectRecipe
from training.segment import SegmentRecipe

SMALL = replace(nano(), image_size=(64, 64), depths=(1, 1, 1))
PHOTOS, CLASSES = 4, 3
loosely: Any = partial  # recipes want more than a loss needs


@dataclass(frozen=True)
class Program:
    """A model, and what its recipe is given."""

    recipe: Callable[..., Recipe]
    build: Callable[[], nn.Module]
    images: Callable[[], Tensor]  # on the CPU, as workers hand them over
    extra: Callable[[], Any]
    lars: bool = False
    masked: bool = False  # the model takes visible cells too


def photos() -> Tensor:
    return torch.zeros(PHOTOS, 3, 64, 64, dtype=torch.uint8)


def targets() -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": torch.zeros(2, 4),
            "labels": torch.zeros(2, dtype=torch.int64),
            "masks": torch.zeros(2, 64, 64, dtype=torch.uint8),
        }
        for _ in range(PHOTOS)
    ]


def reconstruction(masking: Any, cells: int) -> Program:
    choose = loosely(MASKING[masking].choose, mask_ratio=0.75)
    return Program(
        loosely(ReconstructionRecipe, console=None, choose=choose, picture=None),
        lambda: build_pretraining(SMALL, PretrainingConfig(masking=masking, decoder_depth=1)),
        photos,
        lambda: torch.zeros(PHOTOS, cells),
        masked=True,
    )


PROGRAMS = {
    "pretrain": reconstruction("block", 16),
    "pretrain complementary": reconstruction("complementary", 16),
    "pretrain token": reconstruction("token", 256),
    "video_pretrain": Program(
        loosely(
            ReconstructionRecipe, console=None, choose=loosely(MASKING["block"].choose, mask_ratio=0.75), picture=None
        ),
        lambda: build_video_pretraining(SMALL, VideoConfig(frames=4), VideoPretrainingConfig(decoder_depth=1)),
        lambda: torch.zeros(PHOTOS, 3, 4, 64, 64),
        lambda: torch.zeros(PHOTOS, 16),
        masked=True,
    ),
    "finetune": Program(
        loosely(FinetuneRecipe, validation=None, mixing=batch_mixing(AugmentationConfig(), CLASSES)),
        lambda: build_classifier(SMALL, num_classes=CLASSES),
        photos,
        lambda: torch.zeros(PHOTOS, dtype=torch.int64),
    ),
    "linprobe": Program(
        loosely(FinetuneRecipe, validation=None, mixing=None),
        lambda: nn.Sequential(nn.BatchNorm1d(192, affine=False), nn.Linear(192, CLASSES)),
        lambda: torch.zeros(PHOTOS, 192),
        lambda: torch.zeros(PHOTOS, dtype=torch.int64),
        lars=True,
    ),
    "segment": Program(
        loosely(SegmentRecipe, validation=None),
        lambda: build_segmenter(SMALL, SegmenterConfig(), num_classes=CLASSES),
        photos,
        lambda: torch.zeros(PHOTOS, 64, 64, dtype=torch.int64),
    ),
    "detect": Program(
        loosely(DetectRecipe, validation=None),
        lambda: build_detector(SMALL, nano_fpn()[1], num_classes=CLASSES),
        photos,
        targets,
    ),
}


class TracedAccelerator(Accelerator):  # type: ignore[misc]  # accelerate is untyped
    """Accelerate on a device that it does not find."""

    traced = torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """Where models and batches are."""
        return self.traced


def begun(program: Program, model: nn.Module, device: torch.device, dtype: torch.dtype) -> TrainingLoop:
    """A loop whose model is on the device and computes in half precision."""
    moved(model, device)
    model.forward = torch.autocast(device.type, dtype)(model.forward)
    accelerator = TracedAccelerator(cpu=True)
    accelerator.traced = device
    if dtype == torch.float16:
        accelerator.scaler = torch.amp.GradScaler(device.type)
    optimizer = build_lars(model, LarsConfig()) if program.lars else build_adamw(model, OptimisationConfig())
    preprocessing = standard_preprocessing((64, 64))
    run = TrainingRun(
        config=SimpleNamespace(out=Path()),  # type: ignore[arg-type]
        accelerator=accelerator,
        folder=None,  # type: ignore[arg-type]
        record=SimpleNamespace(preprocessing=preprocessing),  # type: ignore[arg-type]
        model=model,
        optimizer=accelerator.prepare_optimizer(optimizer, device_placement=False),
    )
    settings = SimpleNamespace(
        augmentation=AugmentationConfig(), auxiliary_weight=0.4, optimisation=OptimisationConfig(clip_grad=1.0)
    )
    recipe = program.recipe(config=settings, run=run)
    return TrainingLoop(run=run, source=None, recipe=recipe, console=None, log=None)  # type: ignore[arg-type]


def forward(program: Program, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """The loss of a micro-batch that is on the device."""
    recipe = begun(program, model, device, dtype).recipe
    extra = program.extra()
    placed = (
        [{name: torch.empty_like(value, device=device) for name, value in each.items()} for each in extra]
        if isinstance(extra, list)
        else torch.empty_like(extra, device=device)
    )
    images = torch.empty_like(program.images(), device=device)
    assert recipe.loss(normalised(images, recipe.run.record.preprocessing), placed).dtype == torch.float32


def evaluation(program: Program, model: nn.Module, device: torch.device) -> None:
    """A detector's answers to the photos."""
    with torch.no_grad():
        moved(model, device).eval()(torch.empty(PHOTOS, 3, 64, 64, device=device))


def update(program: Program, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """A whole update, from the workers' batch on."""
    loop = begun(program, model, device, dtype)
    loop.update([(program.images(), program.extra(), 0)])
    assert (loop.run.accelerator.scaler is not None) is (dtype == torch.float16)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None and parameter.device.type == device.type, name


def graphs(program: Program) -> dict[str, int]:
    """Graphs that torch.compile makes for three batches of other sizes, each with masks of its own, and its breaks.

    At least 4 photos each: for fewer PyTorch chooses other convolutions on a CPU, which makes one graph more.
    """
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, made = program.build(), 0

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal made
        made += 1
        return graph.forward

    model.compile(backend=count)
    for photos in (4, 6, 5):
        images = torch.randn(photos, *program.images().shape[1:])
        extra = program.extra()
        kept = (torch.rand(photos, extra.shape[1]).argsort(1)[:, : extra.shape[1] // 4],) if program.masked else ()
        model(images, *kept)
    return {"graphs": made, "breaks": sum(counters["graph_break"].values())}


def main(compiled: list[str]) -> None:
    """Prints what was counted."""
    found: dict[str, dict[str, dict[str, int]]] = {"compiled": {name: graphs(PROGRAMS[name]) for name in compiled}}
    for dtype, names in ((torch.bfloat16, [*PROGRAMS]), (torch.float16, ["pretrain"])):
        found[f"forward {dtype}"] = {
            name: host_waits("cuda", partial(forward, PROGRAMS[name], PROGRAMS[name].build(), dtype)) for name in names
        }
    detect = PROGRAMS["detect"]
    found["evaluation"] = {"detect": host_waits("cuda", partial(evaluation, detect, detect.build()))}
    device = stand_in()
    # the forward of the other two of pretraining differs alone
    updates = [name for name in PROGRAMS if name not in ("pretrain complementary", "pretrain token")]
    for dtype, names in ((torch.bfloat16, updates), (torch.float16, ["pretrain", "linprobe"])):
        found[f"update {dtype}"] = {
            name: host_waits(device, partial(update, PROGRAMS[name], PROGRAMS[name].build(), dtype)) for name in names
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
