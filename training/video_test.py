"""Tests a video classifier with several views of each video, the mean of whose probabilities counts.

    python -m training.video_test runs/mine --data videos/ [--temporal 5 --spatial 3]
    torchrun --nproc-per-node 8 -m training.video_test runs/k400-ft --data k400/

The paper tests with 5 clips x 3 crops on Kinetics-400 and 2 x 3 on Something-Something v2 (section 2.4), which is the
default for models of strided clips and of segments. The result is printed and written to `test.json` in the run folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.checkpoints.loading import load_video_classifier
from convmae_deploy.data.video_datasets import EvaluationVideos
from convmae_deploy.data.video_folder import read_video_folder
from convmae_deploy.engine.classification import Accuracy, AverageOfViews
from convmae_deploy.engine.evaluation import evaluate
from convmae_deploy.engine.precision import Precision
from convmae_deploy.engine.start import device_in_words
from convmae_deploy.engine.training_config import RunConfig, check_at_least
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.media.video_file import import_av
from convmae_deploy.program import run_program
from convmae_deploy.tasks.clips import ClipViews

RESULT = "test.json"  # in the run folder or checkpoint
MAX_VIEWS = 1000  # clips of a video, crops of a clip


@dataclass(frozen=True, kw_only=True)
class VideoTestConfig:
    """A test of a finished run."""

    checkpoint: Annotated[Path, tyro.conf.Positional]  # run folder of training.video_finetune, or checkpoint
    data: Path  # folder of val/<class>/*, or of a list val.csv
    temporal: int | None = None  # clips of each video; None: 5, of models of segments 2
    spatial: int = 3  # crops of each clip
    # the forward pass's; auto: bf16 on a GPU or a CPU that is fast at it, else fp32
    precision: Literal["auto"] | Precision = "auto"
    batch_size: int = 4  # videos at once; their views follow each other
    workers: int = 2  # decoding processes of each device

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size, temporal=self.temporal, spatial=self.spatial)
        RunConfig(workers=self.workers)
        if max(self.temporal or 1, self.spatial) > MAX_VIEWS:
            raise ConvMAEError(f"temporal and spatial must be at most {MAX_VIEWS}; got {self.temporal}, {self.spatial}")


def test(config: VideoTestConfig) -> int:
    """Runs the test; returns the exit status.

    Raises:
        ConvMAEError: bad data or checkpoint.
    """
    if (config.checkpoint / RESULT).is_dir():
        raise ConvMAEError(f"{config.checkpoint / RESULT} is a folder, where the result goes; take it away")
    import_av()  # else every video would count as one that cannot be decoded
    model, record = load_video_classifier(config.checkpoint)
    spec = record.preprocessing
    assert isinstance(spec, ClipPreprocessing)
    folder = read_video_folder(config.data, "val", classes=record.classes)
    run, reason = RunConfig(out=config.checkpoint, precision=config.precision, workers=config.workers).decided()
    accelerator = run.accelerator()
    console = run.console(accelerator)
    default = 2 if spec.stride is None else 5
    views = ClipViews(temporal=default if config.temporal is None else config.temporal, spatial=config.spatial)
    console.print(f"device: {device_in_words(accelerator)}; precision {run.precision}, {reason}")
    console.print(
        f"data: {len(folder.videos)} videos, {len(folder.classes)} classes, in {views.temporal} x {views.spatial} views"
    )
    videos = EvaluationVideos(folder, spec, views)
    found = evaluate(
        AverageOfViews(model.to(accelerator.device)),
        videos,
        Accuracy(),
        accelerator,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    counts = {"images": found.images, "unreadable": found.unreadable}
    result = found.scores | counts | {"temporal_views": views.temporal, "spatial_views": views.spatial}
    first = f", the first {found.files[0].file}: {found.files[0].reason}" if found.files else ""
    console.print(
        f"{found.summary} on {found.images} videos, {views.temporal} x {views.spatial} views "
        f"({found.unreadable} could not be decoded{first})"
    )
    if accelerator.is_main_process:
        with atomic_file(config.checkpoint / RESULT) as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    accelerator.end_training()
    return 0


def main() -> int:
    """Command line."""
    return test(tyro.cli(VideoTestConfig, prog="python -m training.video_test"))


if __name__ == "__main__":
    run_program(main)
