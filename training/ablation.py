"""The paper's ablations in small: what pretraining, and each of its parts, is worth on a few photos and a CPU.

    python -m training.ablation --data photos/ --out runs/ablation [--resume]

Each arm pretrains the `nano` preset with one thing changed (Tables 5 and 6 of the paper), finetunes it and probes it,
for every seed; the arm without pretraining starts from random weights. All see the same `train_photos` photos for the
same number of epochs, and are measured on `photos/val` after the last epoch, so nothing is chosen on it. Writes
`table.md`, `results.json` and `table.png`; training/README.md holds the table that we got and the time it took.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.data.determinism import seed_step
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.engine.training_config import TrainingConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, atomic_file, check_can_create
from convmae_deploy.models.convmae import MODELS, build_convmae
from convmae_deploy.program import run_program
from convmae_deploy.terminal import Terminal
from training import finetune, linprobe, pretrain

MAY_CHANGE = ("data", "out", "resume", "workers")  # on --resume
BASELINE = "ConvMAE"
SCRATCH = "no pretraining"

Stage = TypeVar("Stage", bound=TrainingConfig)


ARMS: dict[str, dict[str, Any] | None] = {  # name -> what it changes of the pretraining model; None: no pretraining
    SCRATCH: None,
    BASELINE: {},
    "no masked convolution": {"masked_convolution": False},
    "token masks": {"masking": "token"},
    "no multi-scale decoder": {"multi_scale": False},
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """All arms of the comparison."""

    data: Path = tyro.MISSING  # folder of {train,val}/<class>/*
    out: Path = tyro.MISSING  # folder for the runs, the table and the plot
    resume: bool = False  # continue where an interrupted comparison stopped
    seeds: tuple[int, ...] = (0, 1)  # each arm is run once for each
    train_photos: int = 2000  # from the train split, the same for all; as many of each class as of any other
    pretrain_epochs: int = 40
    finetune_epochs: int = 20
    probe_epochs: int = 50
    image_size: tuple[int, int] = (96, 96)  # (height, width) in pixels, of all stages and of validation
    workers: int = 2  # decoding processes

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 2:
            raise ConvMAEError(f"a spread needs at least two different seeds; got {self.seeds}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One arm with one seed; accuracies in percent after the last epoch, on the whole validation split."""

    arm: str
    seed: int
    finetune_top1: float
    probe_top1: float
    pretrain_loss: float | None  # in the last epoch
    seconds: float  # the epochs of all three stages, evaluation included


def run_ablation(config: AblationConfig, console: Console) -> int:
    """Runs what is not there yet and writes the table; returns the exit status (128 + signal when stopped).

    Raises:
        ConvMAEError: bad data or settings, or a folder of other settings.
    """
    check_can_create(config.out)
    facts = {"photos": config.train_photos}
    RunFolder(config.out).begin(config, seed=config.seeds[0], data=facts, resume=config.resume, ignored=MAY_CHANGE)
    photos = config.out / "photos"
    if not photos.exists():
        link_photos(config.data, photos, config.train_photos)
    results: list[Result] = []
    for seed in config.seeds:
        for arm in ARMS:
            console.print(f"{arm}, seed {seed}")
            outcome = run_arm(config, arm, seed, photos)
            if isinstance(outcome, int):
                console.print("stopped; continue with --resume")
                return outcome
            results.append(outcome)
            write_results(config, results)
    console.print((config.out / "table.md").read_text(encoding="utf-8"))
    return 0


def link_photos(data: Path, out: Path, train_photos: int) -> None:
    """A folder of links to `train_photos` photos, the same at every call and as many of each class, and to val."""
    train, val = (read_photo_folder(data, split) for split in ("train", "val"))
    per_class = train_photos // len(train.classes)
    chosen: list[Path] = []
    for label in range(len(train.classes)):
        own = [photo for photo, other in zip(train.photos, train.labels, strict=True) if other == label]
        if len(own) < per_class:
            raise ConvMAEError(
                f"{train_photos} photos need {per_class} of each class; {train.classes[label]} has {len(own)}"
            )
        chosen += random.Random(label).sample(own, per_class)
    with atomic_directory(out) as temporary:
        for photo in (*chosen, *val.photos):
            link = temporary / photo.relative_to(data)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photo.resolve())


def run_arm(config: AblationConfig, arm: str, seed: int, photos: Path) -> Result | int:
    """Pretrains, finetunes and probes; the exit status instead of a result when stopped by a signal."""
    folder = config.out / f"{arm.replace(' ', '-').lower()}-seed{seed}"
    if ARMS[arm] is None:
        random_encoder(config, seed, folder / "pretrain")
    stages = stages_of(config, ARMS[arm], seed, folder, photos)
    for prepare in stages.values():  # a stage that is finished ends at once
        status = prepare().fit()
        if status:
            return status
    lines = {name: RunFolder(folder / name).metrics() for name in stages}
    return Result(
        arm=arm,
        seed=seed,
        finetune_top1=lines["finetune"][-1]["val_top1"],
        probe_top1=lines["probe"][-1]["val_top1"],
        pretrain_loss=lines["pretrain"][-1]["train_loss"] if "pretrain" in lines else None,
        seconds=sum(line["seconds"] for stage in lines.values() for line in stage),
    )


def stages_of(
    config: AblationConfig, change: dict[str, Any] | None, seed: int, folder: Path, photos: Path
) -> dict[str, Callable[[], TrainingLoop]]:
    """The programs of an arm by the name of their run's folder, each to be prepared; without a change two of them."""
    begun = folder / "pretrain"
    stages: dict[str, Callable[[], TrainingLoop]] = {}
    if change is not None:
        plain = pretrain.nano()
        plain = replace(plain, data=str(photos), model=replace(plain.model, **change))
        plain = staged(plain, config, config.pretrain_epochs, seed, begun)
        stages["pretrain"] = partial(pretrain.prepare, replace(plain, picture_epochs=config.pretrain_epochs))
    tuned = replace(finetune.nano(), data=photos, init=begun, train_size=config.image_size)
    tuned = staged(tuned, config, config.finetune_epochs, seed, folder / "finetune")
    stages["finetune"] = partial(finetune.prepare, replace(tuned, validation_epochs=config.finetune_epochs))
    probed = replace(linprobe.nano(), data=photos, init=begun)
    probed = staged(probed, config, config.probe_epochs, seed, folder / "probe")
    stages["probe"] = partial(linprobe.prepare, replace(probed, validation_epochs=config.probe_epochs))
    return stages


def random_encoder(config: AblationConfig, seed: int, out: Path) -> None:
    """A checkpoint of an encoder with fresh weights, for the arm without pretraining to start from."""
    if out.exists():
        return
    seed_step(seed, 0)
    architecture = replace(MODELS["nano"](), image_size=config.image_size)
    record = CheckpointRecord(kind="features", variant="nano", model=architecture)
    save_checkpoint(out, build_convmae(architecture).state_dict(), record)


def staged(plain: Stage, config: AblationConfig, epochs: int, seed: int, out: Path) -> Stage:
    """A preset as it is run here; one that was begun is resumed."""
    return replace(
        plain,
        image_size=config.image_size,
        optimisation=replace(plain.optimisation, epochs=epochs),
        run=replace(plain.run, out=out, seed=seed, workers=config.workers, resume=(out / "run.json").exists()),
    )


def write_results(config: AblationConfig, results: list[Result]) -> None:
    """The table as Markdown, the results as JSON, and a plot of them."""
    with atomic_file(config.out / "results.json") as temporary:
        temporary.write_text(json.dumps([vars(result) for result in results], indent=2) + "\n", encoding="utf-8")
    with atomic_file(config.out / "table.md") as temporary:
        temporary.write_text(table(results), encoding="utf-8")
    draw_results(config.out / "table.png", results)


def table(results: list[Result]) -> str:
    """Means over the seeds, the spread (largest less smallest) and the difference from ConvMAE for each arm.

    A difference that is no larger than the larger of the two arms' spreads is called none.
    """
    headings = ["arm", "finetuned top-1 %", "spread", f"against {BASELINE}"]
    headings += ["linear probe top-1 %", "spread", f"against {BASELINE}", "seconds"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for arm in dict.fromkeys(result.arm for result in results):
        own = [result for result in results if result.arm == arm]
        cells = [arm]
        for measure in ("finetune_top1", "probe_top1"):
            mean, spread = mean_and_spread(results, arm, measure)
            cells += [f"{mean:.2f}", f"{spread:.2f}", against_baseline(results, arm, measure)]
        cells.append(f"{sum(result.seconds for result in own):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    seeds = len({result.seed for result in results})
    return "\n".join([*lines, "", f"{seeds} seeds; seconds of all of them together."]) + "\n"


def mean_and_spread(results: list[Result], arm: str, measure: str) -> tuple[float, float]:
    """Of an arm over its seeds."""
    values = [getattr(result, measure) for result in results if result.arm == arm]
    return sum(values) / len(values), max(values) - min(values)


def against_baseline(results: list[Result], arm: str, measure: str) -> str:
    """The difference of means, or "none" where it does not exceed the spread.

    Empty for ConvMAE itself, and where an arm has a single seed so far, which has no spread.
    """
    runs = [result.arm for result in results]
    if arm == BASELINE or min(runs.count(arm), runs.count(BASELINE)) < 2:
        return ""
    (mean, spread), (base_mean, base_spread) = (mean_and_spread(results, name, measure) for name in (arm, BASELINE))
    difference = mean - base_mean
    return "none" if abs(difference) <= max(spread, base_spread) else f"{difference:+.2f}"


def draw_results(path: Path, results: list[Result]) -> None:
    """One dot a seed, a bar at the mean, for each arm and measure."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    arms = list(dict.fromkeys(result.arm for result in results))
    figure = Figure(figsize=(9, 0.6 + 0.5 * len(arms)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (measure, title) in zip(
        panels, {"finetune_top1": "finetuned", "probe_top1": "linear probe"}.items(), strict=True
    ):
        for place, arm in enumerate(arms):
            values = [getattr(result, measure) for result in results if result.arm == arm]
            axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.7)
            axes.plot(sum(values) / len(values), place, "|", color="black", markersize=16)
        axes.set(xlabel="top-1 on val (%)", title=title)
        axes.set_yticks(range(len(arms)), arms)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()  # both share it
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main() -> int:
    """Command line."""
    return run_ablation(tyro.cli(AblationConfig, prog="python -m training.ablation"), Terminal(highlight=False))


if __name__ == "__main__":
    run_program(main)
