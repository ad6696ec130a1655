"""Does every preset of every training program train? Each takes some real updates on a few photos or videos.

    python -m benchmarks.presets --photos imagenette/ --coco coco/ --segmentation camvid/ --videos motion8/
        --out runs/presets [--programs finetune linprobe] [--presets base large] [--memory-gb 16] [--resume]

Every preset runs as its user runs it, `python -m training.PROGRAM PRESET …`, with its own model, augmentation,
optimiser and schedule. Smaller are the pictures, the batches, the data and the number of epochs, which is one. Each has
a process of its own, so one that crashes is a row of the table, and so is one for which memory is short. A linear probe
starts from an encoder with fresh weights. The table is printed and in OUT/table.md; OUT/PROGRAM/PRESET has the log of
each and its run folder, without the checkpoints. The exit status is 1 where one failed.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from benchmarks.bounded_process import Outcome, run_bounded
from benchmarks.small_data import copy_coco, copy_photos, copy_segmentation, copy_videos
from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file, check_can_create
from convmae_deploy.models.vit import PhotoVariant, build_encoder, variant_config
from convmae_deploy.program import run_program
from training import detect, finetune, linprobe, pretrain, segment, video_finetune, video_pretrain

PROGRAMS: dict[str, ModuleType] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "linprobe": linprobe,
    "detect": detect,
    "segment": segment,
    "video_pretrain": video_pretrain,
    "video_finetune": video_finetune,
}
DATA = {"detect": "coco", "segment": "segmentation", "video_pretrain": "videos", "video_finetune": "videos"}
COPY: dict[str, Callable[[Path, Path, dict[str, int]], None]] = {
    "photos": copy_photos,
    "coco": copy_coco,
    "segmentation": copy_segmentation,
    "videos": copy_videos,
}
BATCH, MICRO_BATCH = 4, 2  # photos or videos an update, and at once
VALIDATION = 4  # photos or videos
SIDE = {"detect": 128, "segment": 128}  # pixels; of the others 64
# what is smaller than in the preset, beside the batch
SMALLER: dict[str, tuple[str, ...]] = {"finetune": ("--train-size", "64", "64"), "segment": ("--short-side", "128")}
State = Literal["ran", "failed", "did not fit"]


@dataclass(frozen=True, kw_only=True)
class PresetsConfig:
    """Runs presets of training programs for a few updates each."""

    photos: Path | None = None  # folder of {train,val}/<class>/*
    coco: Path | None = None  # folder of photos and annotations
    segmentation: Path | None = None  # folder of photos and label maps
    videos: Path | None = None  # folder of {train,val}/<class>/*
    out: Path = tyro.MISSING  # folder for the runs and the table
    programs: tuple[str, ...] = tuple(PROGRAMS)  # those to run
    presets: tuple[str, ...] = ()  # those to run of each program that has them; none: all
    updates: int = 4  # in each run
    memory_gb: float | None = None  # most memory of a preset's process; None: what the machine has
    minutes: float = 20.0  # after which a preset is ended
    resume: bool = False  # keep what ran already

    def __post_init__(self) -> None:
        known = {name for program in PROGRAMS.values() for name in program.PRESETS}
        for kind, given, all_names in (("program", self.programs, set(PROGRAMS)), ("preset", self.presets, known)):
            if unknown := sorted(set(given) - all_names):
                names = ", ".join(sorted(all_names))
                raise ConvMAEError(f"--{kind}s must be among {names}; got {unknown[0]}")
        if self.updates < 1:
            raise ConvMAEError(f"--updates must be at least 1; got {self.updates}")
        for program in self.programs:
            if getattr(self, data_of(program)) is None:
                raise ConvMAEError(f"{program} needs data; give --{data_of(program)} or name other --programs")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a preset."""

    program: str
    preset: str
    state: State
    updates: int
    first_loss: float | None
    last_loss: float | None  # on other photos than the first
    seconds: float  # from the start of the program to its end
    peak_gb: float | None  # resident memory of the training process; None: not on Linux
    reason: str  # why it did not run


def data_of(program: str) -> str:
    """The kind of data that a program trains on."""
    return DATA.get(program, "photos")


def chosen(config: PresetsConfig) -> Iterator[tuple[str, str]]:
    """Program and preset of every row."""
    for program in config.programs:
        for preset in PROGRAMS[program].PRESETS:
            if not config.presets or preset in config.presets:
                yield program, preset


def run_presets(config: PresetsConfig, console: Console) -> list[Row]:
    """Runs what did not run yet, and writes the table after each.

    Raises:
        ConvMAEError: the data are bad or too few, or `out` holds other runs.
    """
    check_can_create(config.out)
    file = config.out / "results.json"
    if config.out.exists() and any(config.out.iterdir()) and not config.resume:
        raise ConvMAEError(f"{config.out} holds runs already; add --resume to go on with them or choose another --out")
    found = [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    rows = {(row.program, row.preset): row for row in found if row.state == "ran"}
    for program, preset in chosen(config):
        if (program, preset) in rows:
            continue
        console.print(f"{program} {preset} …")
        row = rows[program, preset] = run_preset(program, preset, config)
        result = f": {row.reason}" if row.reason else f" {row.updates} updates in {row.seconds:.0f} seconds"
        console.print(f"{program} {preset} {row.state}{result}")
        write_results(config.out, list(rows.values()))
    return [rows[key] for key in chosen(config)]


def run_preset(program: str, preset: str, config: PresetsConfig) -> Row:
    """One preset to its end, and what it left behind without the checkpoints."""
    data = small_data(program, config)
    folder = config.out / program / preset
    shutil.rmtree(folder, ignore_errors=True)  # what a failed run left
    folder.mkdir(parents=True)
    if program == "linprobe":
        save_fresh_encoder(linprobe.PRESETS[preset][1].variant, folder / "init")
    command = training_command(program, preset, data, folder)
    outcome = run_bounded(command, folder / "log.txt", memory_gb=config.memory_gb, minutes=config.minutes)
    losses = losses_of(folder / "run")
    for heavy in ("init", "run/last", "run/best", "run/features"):
        shutil.rmtree(folder / heavy, ignore_errors=True)
    return judged(program, preset, outcome, losses, config)


def small_data(program: str, config: PresetsConfig) -> Path:
    """A copy of what a program trains on, made where it is not there yet."""
    kind = data_of(program)
    small = config.out / "data" / kind
    if not small.exists():
        COPY[kind](getattr(config, kind), small, {"train": BATCH * config.updates, "val": VALIDATION})
    return small


def training_command(program: str, preset: str, data: Path, folder: Path) -> list[str]:
    """What a user would type, made small."""
    side = str(SIDE.get(program, 64))
    flags = ["--data", str(data), "--out", str(folder / "run"), "--image-size", side, side, *SMALLER.get(program, ())]
    flags += ["--epochs", "1", "--batch-size", str(BATCH), "--micro-batch-size", str(MICRO_BATCH), "--workers", "1"]
    if program == "linprobe":
        flags += ["--init", str(folder / "init")]
    return [sys.executable, "-m", f"training.{program}", preset, *flags]


def save_fresh_encoder(variant: PhotoVariant, out: Path) -> None:
    """Saves an encoder with fresh weights: a linear probe must start from some, whatever they are."""
    torch.manual_seed(0)
    architecture = variant_config(variant, None)
    record = CheckpointRecord(kind="features", variant=variant, model=architecture)
    save_checkpoint(out, build_encoder(architecture).state_dict(), record)


def losses_of(run: Path) -> list[float]:
    """The loss of each update of a run; not a number where it was skipped."""
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,  # slow to import
    )

    if not (run / "tensorboard").is_dir():
        return []
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars("update/loss")] if events.Tags()["scalars"] else []


def judged(program: str, preset: str, outcome: Outcome, losses: list[float], config: PresetsConfig) -> Row:
    """The row of an outcome."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    state: State = "failed"
    if outcome.ran_out_of_memory:
        bound = "this machine" if config.memory_gb is None else f"{config.memory_gb:g} GB"
        state, reason = "did not fit", f"needs more memory than {bound} after {len(losses)} updates"
    elif outcome.timed_out:
        reason = f"took longer than {config.minutes:g} minutes"
    elif outcome.status:
        reason = f"status {outcome.status}: {outcome.said}"
    elif len(finite) != config.updates:
        reason = f"{len(finite)} of {config.updates} updates with a finite loss"
    else:
        state, reason = "ran", ""
    return Row(
        program=program,
        preset=preset,
        state=state,
        updates=len(finite),
        first_loss=finite[0] if finite else None,
        last_loss=finite[-1] if finite else None,
        seconds=round(outcome.seconds, 1),
        peak_gb=None if outcome.peak_gb is None else round(outcome.peak_gb, 2),
        reason=reason,
    )


def write_results(out: Path, rows: list[Row]) -> None:
    """The rows as JSON and as a table."""
    with atomic_file(out / "results.json") as temporary:
        temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    with atomic_file(out / "table.md") as temporary:
        temporary.write_text(table(rows), encoding="utf-8")


def table(rows: list[Row]) -> str:
    """Markdown; what was reduced in every preset of a program stands in its first row."""
    lines = ["| program | reduced to | preset | updates | first and last loss | seconds | peak GB |", "|---" * 7 + "|"]
    begun: set[str] = set()
    for row in rows:
        first = row.program not in begun
        begun.add(row.program)
        losses = "" if row.first_loss is None else f"{row.first_loss:.3f} {row.last_loss:.3f}"
        cells: list[Any] = [row.program if first else "", reduced(row.program) if first else "", f"`{row.preset}`"]
        cells += [row.updates if row.state == "ran" else f"{row.updates}, {row.state}: {row.reason}", losses]
        cells += [f"{row.seconds:.0f}", "" if row.peak_gb is None else f"{row.peak_gb:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def reduced(program: str) -> str:
    """What every preset of a program was reduced to."""
    return f"{SIDE.get(program, 64)} pixels, batch {BATCH} in {MICRO_BATCH}s, 1 epoch, 1 worker"


def main() -> int:
    """The command; 1 where a preset failed."""
    config = tyro.cli(PresetsConfig, prog="python -m benchmarks.presets", description=PresetsConfig.__doc__)
    rows = run_presets(config, Console(stderr=True, highlight=False, soft_wrap=True))
    print(table(rows))
    counts = {state: sum(row.state == state for row in rows) for state in ("ran", "did not fit", "failed")}
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    run_program(main)
