"""What does it change to take 2 x 2 samples a bin in ROIAlign, where the authors take as many as a bin has cells?

    python -m benchmarks.sampling_ratio runs/overfit --data coco/ [--split train] [--photos 20]

A static graph cannot let the number of samples depend on the region, so this project trains, evaluates and exports with
2 (`models.roi_heads.SAMPLING_RATIO`); the authors' configuration is 0, which means that. Here a trained detector is
evaluated with both, in fp32 as `python -m training.detect` does it, and the features that its two heads are fed are
compared on the same regions: the proposals of the box head and the detections of the mask head, with 2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from accelerate import Accelerator
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.checkpoints.loading import load_detector
from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.detection_datasets import EvaluationDetections
from convmae_deploy.engine.coco_evaluation import IOU_TYPES, Kind
from convmae_deploy.engine.detection import evaluate_detector
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.models.roi_heads import SAMPLING_RATIO, PyramidRoIAlign
from convmae_deploy.program import run_program

ADAPTIVE = 0  # for torchvision: as many samples along a side of a bin as it has cells
RATIOS = {SAMPLING_RATIO: f"{SAMPLING_RATIO}, ours", ADAPTIVE: f"{ADAPTIVE}, the authors'"}


@dataclass(frozen=True, kw_only=True)
class SamplingRatioConfig:
    """Evaluates a detector with both sampling ratios."""

    run: Annotated[Path, tyro.conf.Positional]  # run folder or checkpoint of training.detect
    data: Path  # annotations and photos in COCO's format
    split: Literal["train", "val"] = "train"  # which photos
    photos: int | None = 20  # so many with objects, as --train-images of training.detect; None: all of them
    batch_size: int = 4  # photos at once


@dataclass(kw_only=True)
class PooledDifference:
    """How far the features of regions are apart with the two ratios."""

    largest: float = 0.0
    largest_feature: float = 0.0  # with ours
    squared: float = 0.0  # sum over all features
    squared_features: float = 0.0

    def add(self, ours: Tensor, adaptive: Tensor) -> None:
        """Takes the features of some regions (R, P, side, side) with both; R may be 0."""
        if not len(ours):
            return
        difference = (ours - adaptive).double()
        self.largest = max(self.largest, float(difference.abs().amax()))
        self.largest_feature = max(self.largest_feature, float(ours.abs().amax()))
        self.squared += float(difference.square().sum())
        self.squared_features += float(ours.double().square().sum())

    @property
    def relative(self) -> float:
        """Root mean square of the difference / that of the features; 0 where there was no region."""
        return float((self.squared / self.squared_features) ** 0.5) if self.squared_features else 0.0


def pools_of(model: ConvMAEDetector) -> dict[str, PyramidRoIAlign]:
    """The poolings of the two heads."""
    return {"box head": model.roi_heads.box_roi_pool, "mask head": model.roi_heads.mask_roi_pool}


@contextmanager
def sampling(pools: Sequence[PyramidRoIAlign], ratio: int) -> Iterator[None]:
    """Within it they take `ratio` samples along a side of a bin."""
    before = [pool.sampling_ratio for pool in pools]
    for pool in pools:
        pool.sampling_ratio = ratio
    try:
        yield
    finally:
        for pool, own in zip(pools, before, strict=True):
            pool.sampling_ratio = own


@contextmanager
def compared(pools: dict[str, PyramidRoIAlign]) -> Iterator[dict[str, PooledDifference]]:
    """Within it every pooling is also computed with `ADAPTIVE`; gives what they differ by, for each head."""
    differences = {name: PooledDifference() for name in pools}

    def watch(name: str, pool: PyramidRoIAlign) -> Any:
        def compare(_: nn.Module, inputs: tuple[Any, ...], pooled: Tensor) -> None:
            with sampling([pool], ADAPTIVE):
                differences[name].add(pooled, pool.forward(*inputs))

        return pool.register_forward_hook(compare)

    hooks = [watch(name, pool) for name, pool in pools.items()]
    try:
        yield differences
    finally:
        for hook in hooks:
            hook.remove()


def measure(
    model: ConvMAEDetector, photos: EvaluationDetections, batch_size: int
) -> tuple[dict[int, dict[Kind, float]], dict[str, PooledDifference]]:
    """AP of boxes and masks in percent with each ratio, and what the heads are fed differently."""
    accelerator = Accelerator(cpu=True)
    pools = pools_of(model)
    scores: dict[int, dict[Kind, float]] = {}

    def evaluate(ratio: int) -> None:
        with sampling(list(pools.values()), ratio):
            result = evaluate_detector(model, photos, accelerator, batch_size=batch_size, workers=0)
        scores[ratio] = {kind: result.scores[f"{kind}_ap"] for kind in IOU_TYPES}

    with compared(pools) as differences:
        evaluate(SAMPLING_RATIO)
    evaluate(ADAPTIVE)
    return scores, differences


def open_photos(
    config: SamplingRatioConfig, classes: tuple[str, ...], preprocessing: Letterbox
) -> EvaluationDetections:
    """The photos to evaluate on.

    Raises:
        ConvMAEError: there are none, or their categories are not the detector's.
    """
    split = read_coco_split(config.data, config.split).for_training(limit=config.photos)
    if split.classes != classes:
        raise ConvMAEError(f"{split.file} must have the categories of {config.run}; it has others")
    return EvaluationDetections(split, preprocessing)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    config = tyro.cli(SamplingRatioConfig, args=arguments, prog="python -m benchmarks.sampling_ratio")
    model, record = load_detector(config.run)
    preprocessing = record.preprocessing or Letterbox(size=record.model.input_size)
    assert isinstance(preprocessing, Letterbox)
    photos = open_photos(config, record.classes, preprocessing)
    scores, differences = measure(model, photos, config.batch_size)
    console = Console()
    heading = f"{config.run}: {len(photos)} photos of {config.split}, fp32, torch {torch.__version__}"
    console.print(heading, highlight=False, soft_wrap=True)
    table = Table("sampling ratio", "box AP %", "mask AP %", box=box.SIMPLE)
    for ratio, found in scores.items():
        table.add_row(RATIOS[ratio], f"{found['box']:.2f}", f"{found['mask']:.2f}")
    console.print(table)
    for name, difference in differences.items():
        console.print(
            f"features of the {name}'s regions: differ by at most {difference.largest:.2f} (they reach "
            f"{difference.largest_feature:.2f}), and by {100 * difference.relative:.1f} % in the root mean square",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    run_program(main)
