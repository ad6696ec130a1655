"""A bundle of any variant with random weights, for measuring speed where no trained one is at hand.

    python -m benchmarks.random_bundle --variant base --out bundles/random-base

Its manifest carries no numerics report, so that the runtime warns: nobody should take its predictions for anything.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
import tyro

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier
from convmae_deploy.models.convmae import MODELS
from convmae_deploy.program import run_program
from convmae_deploy.runtime.manifest import Licence, standard_preprocessing
from export.packaging import MODEL_NAME, BundleContent, write_manifest
from export.to_onnx import export_classifier

SEED = 0
CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class RandomBundleConfig:
    """Writes a bundle with random weights."""

    out: Path  # the bundle to create; must not exist
    variant: str = "base"  # nano, tiny, small, base, base_plus, large or huge
    max_batch: int = 32  # largest batch that the bundle takes


def random_classifier(variant: str) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """A variant with 1000 classes and the same random weights every time, in evaluation mode, with its record.

    Raises:
        ConvMAEError: there is no such variant.
    """
    if variant not in MODELS:
        raise ConvMAEError(f"--variant must be one of {', '.join(MODELS)}; got {variant!r}")
    config = MODELS[variant]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build_classifier(config, num_classes=CLASSES).eval()
    record = CheckpointRecord(
        kind="classifier",
        variant=variant,
        model=config,
        classes=tuple(f"class {index}" for index in range(CLASSES)),
        licence=Licence(name="none: random numbers"),
        provenance={"weights": f"random, seed {SEED}"},
    )
    return model, record


def write_random_bundle(out: Path, model: ConvMAEClassifier, record: CheckpointRecord, max_batch: int) -> None:
    """Exports without comparing: the manifest says that the graph was not verified."""
    graph = export_classifier(model, record.model.image_size, max_batch)
    shapes = {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim[1:])
        for value in graph.model.graph.output
    }
    content = BundleContent(
        name=f"random-{record.variant}",
        task="classification",
        record=record,
        checkpoint=None,
        preprocessing=standard_preprocessing(record.model.image_size),
        max_batch=max_batch,
        licence_file=None,
    )
    with atomic_directory(out) as directory:
        onnx.save(graph.model, directory / MODEL_NAME)
        write_manifest(directory, content, shapes=shapes, numerics=None)


def main() -> None:
    """The command."""
    config = tyro.cli(RandomBundleConfig, prog="python -m benchmarks.random_bundle")
    model, record = random_classifier(config.variant)
    write_random_bundle(config.out, model, record, config.max_batch)
    print(f"Written, not verified: {config.out}")


if __name__ == "__main__":
    run_program(main)
