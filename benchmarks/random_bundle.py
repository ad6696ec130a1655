"""A bundle of any model with random weights, for measuring speed where no trained one is at hand.

    python -m benchmarks.random_bundle --variant base --out bundles/random-base
    python -m benchmarks.random_bundle --precision fp32,bf16,int8 --calibrate photos/ --out bundles/random-precisions
    python -m benchmarks.random_bundle --task detection --variant base --max-batch 1 --out bundles/random-detector
    python -m benchmarks.random_bundle --task video-classification --variant base --max-batch 2 --verify --out B

Its manifest carries no numerics report, so that the runtime warns: nobody should take its predictions for anything.
With `--verify` it is made by `python -m export`, with all that this compares. With `--checkpoint` the weights are kept,
so that PyTorch can be measured beside:

    python -m benchmarks.random_bundle --variant base --max-batch 8 --out B --checkpoint C
    python -m export.benchmark B --checkpoint C --batch-sizes 1 8
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import nn

from convmae_deploy.bundle.manifest import BundleFile, InputSpec, Licence, Precision
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier, build_video_classifier
from convmae_deploy.models.convmae import MODELS
from convmae_deploy.models.detector import DETECTORS, ConvMAEDetector, build_detector
from convmae_deploy.models.segmenter import ConvMAESegmenter, SegmenterConfig, authors_dense, build_segmenter
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.program import run_program
from export.__main__ import ExportConfig, export_bundle, int8_maker
from export.comma_list import comma_list
from export.graph_files import write_graph
from export.graphs.to_onnx import ExportedGraph
from export.packaging import BundleContent, describe_file, unmade_manifest, write_manifest
from export.precisions import GRAPHS, GraphRequest, file_name, parse_precision
from export.tasks import EXPORTS
from export.tasks.base import ExportTask

SEED = 0
COMMAND = ["python", "-m", "benchmarks.random_bundle"]
DETECTOR_VARIANTS = ("nano", "tiny", "base")
LIKELY = 3.0  # logit, which is a score of 0.07 among 81 of which ten have it; the threshold is 0.05
WINDOW = (512, 512)  # (height, width) in pixels of a segmenter's input


@dataclass(frozen=True, kw_only=True)
class RandomBundleConfig:
    """Writes a bundle with random weights."""

    out: Path  # the bundle to create; must not exist
    # 1000 classes; features: without them; detection: Mask R-CNN, 80; segmentation: UperNet at 512, 150;
    # video-classification: 16 frames, 400; video-features: without them
    task: str = "classification"
    variant: str = "base"  # nano, tiny, small, base, base_plus, large or huge; detect: nano, tiny or base
    precision: Annotated[tuple[Precision, ...], comma_list(parse_precision, "PRECISION,...")] = ("fp32",)
    max_batch: int = 32  # largest batch that the bundle takes
    calibrate: Path | None = None  # int8: folder of photos or videos; any drop of the metric is accepted
    verify: bool = False  # compare the graph with PyTorch as every export does
    checkpoint: Path | None = None  # where to keep the checkpoint of the same weights; default: nowhere


def random_classifier(variant: str) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """A classifier with 1000 classes."""
    check_known("--variant", variant, MODELS)
    config = MODELS[variant]()
    model = build_classifier(config, num_classes=1000)
    return model, CheckpointRecord(kind="classification", model=config, **random_facts(variant, 1000))


def random_detector(variant: str) -> tuple[ConvMAEDetector, CheckpointRecord]:
    """A Mask R-CNN with an FPN that gives 100 detections whatever it sees: ten classes are likely everywhere."""
    check_known("--variant", variant, DETECTOR_VARIANTS)
    config, detector = DETECTORS[f"{variant}_fpn"]()
    model = build_detector(config, detector, num_classes=80)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1:11] = LIKELY
    return model, CheckpointRecord(kind="detection", model=config, detector=detector, **random_facts(variant, 80))


def random_segmenter(variant: str) -> tuple[ConvMAESegmenter, CheckpointRecord]:
    """An UperNet in the form of the authors' code."""
    check_known("--variant", variant, MODELS)
    config = replace(MODELS[variant](), image_size=WINDOW, dense=authors_dense())
    segmenter = SegmenterConfig(e4="convolution")
    model = build_segmenter(config, segmenter, num_classes=150)
    return model, CheckpointRecord(kind="segmentation", model=config, segmenter=segmenter, **random_facts(variant, 150))


def random_video_classifier(variant: str) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """A video classifier with 400 classes, of 16 frames."""
    check_known("--variant", variant, MODELS)
    config, video = MODELS[variant](), VideoConfig()
    model = build_video_classifier(config, video, num_classes=400)
    return model, CheckpointRecord(kind="video-classification", model=config, video=video, **random_facts(variant, 400))


RANDOM_MODELS: dict[str, Callable[[str], tuple[Any, CheckpointRecord]]] = {
    "classification": random_classifier,
    "features": random_classifier,
    "detection": random_detector,
    "segmentation": random_segmenter,
    "video-classification": random_video_classifier,
    "video-features": random_video_classifier,
}


def random_model(task: str, variant: str) -> tuple[nn.Module, CheckpointRecord]:
    """A model in evaluation mode with the same random weights every time; the global generator is left alone.

    Raises:
        ConvMAEError: there is no such task or variant.
    """
    check_known("--task", task, RANDOM_MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, record = RANDOM_MODELS[task](variant)
    return model.eval(), record


def random_task(task: str, variant: str) -> ExportTask:
    """The same, ready to be exported."""
    return EXPORTS[task].assemble(*random_model(task, variant))


def check_known(flag: str, value: str, known: Iterable[str]) -> None:
    """Raises ConvMAEError unless there is such a value of a flag."""
    if value not in known:
        raise ConvMAEError(f"{flag} must be one of {', '.join(known)}; got {value!r}")


def random_facts(variant: str, classes: int) -> dict[str, Any]:
    """What the record of every random model says besides its architecture."""
    return {
        "variant": variant,
        "classes": tuple(f"class {index}" for index in range(classes)),
        "licence": Licence(name="none: random numbers"),
        "provenance": {"weights": f"random, seed {SEED}"},
    }


def write_random_bundle(
    out: Path,
    task: ExportTask,
    max_batch: int,
    precisions: Sequence[Precision] = ("fp32",),
    calibrate: Path | None = None,
) -> None:
    """Exports without comparing: the manifest says that the graphs were not verified.

    Args:
        out: the bundle to create.
        task: the model.
        max_batch: largest batch that the bundle takes.
        precisions: of the files besides that in fp32.
        calibrate: folder of photos or videos for int8.

    Raises:
        ConvMAEError: int8 has no folder, or there is one for nothing.
    """
    config = export_config(out, out, max_batch, precisions, calibrate)
    blank = np.zeros((1, 3, *task.preprocessing.input_axes), np.float32)
    shapes = {name: value.shape[1:] for name, value in task.reference(blank).items()}
    content = BundleContent(
        name=f"random-{task.record.variant}",
        task=task.task,
        record=task.record,
        checkpoint=None,
        preprocessing=task.preprocessing,
        max_batch=max_batch,
        licence_file=None,
    )
    int8 = int8_maker(config, unmade_manifest(content, shapes), Console(stderr=True), COMMAND)
    entry = InputSpec(
        name=task.preprocessing.INPUT_NAME, shape=(3, *task.preprocessing.input_axes), max_batch=max_batch
    )
    with atomic_directory(out) as directory:
        files: dict[str, BundleFile] = {}
        float32: ExportedGraph | None = None
        for precision in dict.fromkeys(("fp32", *precisions)):
            path = directory / file_name(precision)
            request = GraphRequest(task=task, entry=entry, float32=float32, int8=int8, path=path)
            graph = GRAPHS[precision](request)
            float32 = float32 or graph  # the first
            write_graph(graph.model, path, leave_out=task.probes)
            files[path.name] = describe_file(path, precision, quantisation=graph.quantisation)
        write_manifest(directory, content, shapes=shapes, files=files)


def export_config(
    checkpoint: Path, out: Path, max_batch: int, precisions: Sequence[Precision], calibrate: Path | None
) -> ExportConfig:
    """The export of a trained model with the same files; what random weights agree on in int8 decides nothing."""
    return ExportConfig(
        checkpoint=checkpoint,
        out=out,
        max_batch=max_batch,
        precision=tuple(precisions),
        calibrate=calibrate,
        max_drop=100.0,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    config = tyro.cli(RandomBundleConfig, args=arguments, prog="python -m benchmarks.random_bundle")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = config.checkpoint or Path(folder) / "random"
        export = export_config(checkpoint, config.out, config.max_batch, config.precision, config.calibrate)
        model, record = random_model(config.task, config.variant)
        if config.verify or config.checkpoint is not None:
            save_checkpoint(checkpoint, model.state_dict(), record)
        if config.verify:
            export_bundle(replace(export, task=config.task), Console(), COMMAND)
        else:
            task = EXPORTS[config.task].assemble(model, record)
            write_random_bundle(config.out, task, config.max_batch, config.precision, config.calibrate)
    print(f"{'Verified and written' if config.verify else 'Written, not verified'}: {config.out}")


if __name__ == "__main__":
    run_program(main)
