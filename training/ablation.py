"""The paper's orderings in small: what pretraining, and a part of it, is worth, on a few thousand photos and a CPU.

    python -m training.ablation --data photos/ --out runs/ablation [--arms "no pretraining" ...] [--resume]

Each arm pretrains the `nano` preset on all photos of `photos/train`, without their labels, with one thing changed
(Tables 5, 6 and 8 of the paper). What it learnt is measured twice on the whole of `photos/val`: by a linear probe at
its optimum, which knows all labels, and by finetuning with a tenth of the labels, after its last epoch: nothing is
chosen on the validation photos. Every arm is run with the same seeds and compared with ConvMAE pair by pair: two runs
of a seed begin with the same weights and see the same photos in the same order. The arm "no pretraining" is those
weights after 0 updates; "no pretraining, no layer decay" finetunes them as one trains from scratch, where every layer
learns at the full rate. An ordering shows where the interval of the differences does not hold 0 and the probability,
adjusted for the number of comparisons (Holm), is below 5 %.

Writes `table.md`, `results.json` and `table.png`, and for each run `<arm>-seed<seed>/result.json`. A run that has one
is not run again, so seeds may be run on several machines: bring their folders, or these files of them, together in
one `--out` folder, a new one or one of theirs, and resume.
training/README.md says how far we have run it.
The 0.4 points of the paper between block and token masks would need some hundred seeds. The arm with a ViT shares
photos and their order with ConvMAE, and has weights of its own.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from rich.console import Console

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.data.features import read_features
from convmae_deploy.data.photo_datasets import EvaluationPhotos
from convmae_deploy.data.photo_folder import PhotoFolder, read_photo_folder, read_photo_splits
from convmae_deploy.engine.classification import initial_record
from convmae_deploy.engine.comparison import CONFIDENCE, Difference, holm, paired_difference
from convmae_deploy.engine.failures import training_failures_in_words
from convmae_deploy.engine.feature_cache import FeatureCache, photos_digest
from convmae_deploy.engine.precision import Precision
from convmae_deploy.engine.probe import probe_logits
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig, check_at_least, check_numbers
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import Setup
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import RUN_RECORD, atomic_directory, atomic_file, check_can_create, read_json
from convmae_deploy.machine import processor
from convmae_deploy.models.convmae import check_image_size
from convmae_deploy.models.vit import PhotoVariant
from convmae_deploy.program import run_program
from convmae_deploy.terminal import Terminal
from training import finetune, linprobe, pretrain

MAY_CHANGE = ("data", "out", "resume", "workers", "arms", "seeds")  # on --resume
BASELINE = "ConvMAE"
RESULT = "result.json"  # of a run, in its folder
MEASURES = {"probe_top1": "linear probe", "finetune_top1": "finetuned"}
LEVEL = 0.05  # of the adjusted probability, below which an ordering shows

Stage = TypeVar("Stage", bound=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What an arm changes of ConvMAE's run."""

    variant: PhotoVariant = "nano"
    model: dict[str, Any] = field(default_factory=dict)  # of `PretrainingConfig`
    finetune: dict[str, Any] = field(default_factory=dict)  # of `FinetuneConfig`
    updates: bool = True  # whether it is pretrained at all
    probe: bool = True  # whether its encoder is another one than those of the arms before it


ARMS = {
    BASELINE: Arm(),
    "no pretraining": Arm(updates=False),
    "no pretraining, no layer decay": Arm(updates=False, probe=False, finetune={"layer_decay": 1.0}),
    "no masked convolution": Arm(model={"masked_convolution": False}),
    "no multi-scale decoder": Arm(model={"multi_scale": False}),
    "token masks": Arm(model={"masking": "token"}),
    "MAE with a ViT": Arm(variant="vit_nano"),
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """ConvMAE and the arms that are compared with it."""

    data: Path = tyro.MISSING  # folder of {train,val}/<class>/*
    out: Path = tyro.MISSING  # folder for the runs, the table and the plot
    resume: bool = False  # continue where an interrupted comparison stopped, or add arms and seeds to it
    arms: tuple[str, ...] = ("no pretraining", "no pretraining, no layer decay", "no masked convolution")
    seeds: tuple[int, ...] = (0, 1, 2)  # each arm is run once for each; an interval needs two
    pretrain_epochs: int = 60
    finetune_epochs: int = 110
    labelled: float = 0.1  # share of each class's training photos whose labels finetuning sees
    layer_decay: float = 0.7  # of finetuning
    image_size: tuple[int, int] = (96, 96)  # (height, width) in pixels, of all stages and of validation
    precision: Precision = "fp32"  # of all runs, whatever machine goes on with them
    workers: int = 1  # decoding processes

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < max(1, len(self.seeds)):
            raise ConvMAEError(f"seeds must be at least one, two for an interval, all different; got {self.seeds}")
        unknown = sorted(set(self.arms) - set(ARMS) | {BASELINE} & set(self.arms))
        if unknown:
            raise ConvMAEError(
                f"arms must be among {', '.join(name for name in ARMS if name != BASELINE)}; got {unknown}"
            )
        check_numbers(self)
        check_at_least(1, pretrain_epochs=self.pretrain_epochs, finetune_epochs=self.finetune_epochs)
        check_image_size(self.image_size)
        for seed in self.seeds:
            RunConfig(seed=seed, workers=self.workers)
        if not 0 < self.labelled <= 1:
            raise ConvMAEError(f"labelled must be above 0 and at most 1; got {self.labelled:g}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One arm with one seed; accuracies in percent on the whole validation split."""

    arm: str
    seed: int
    probe_top1: float | None  # None: that of another arm
    finetune_top1: float
    pretrain_loss: float | None  # in the last epoch
    seconds: float  # the epochs of both trainings, evaluation included


def run_ablation(config: AblationConfig, console: Console) -> int:
    """Runs what is not there yet and writes the table; returns the exit status (128 + signal when stopped).

    Raises:
        ConvMAEError: bad data or settings, or a folder of other settings.
    """
    check_can_create(config.out)
    read_photo_splits(config.data)  # before the folder is begun
    begin(config)
    labelled = config.out / "labelled"
    if not labelled.exists():
        link_photos(config.data, labelled, config.labelled)
    results: list[Result] = []
    for seed in config.seeds:
        for arm in (BASELINE, *config.arms):
            console.print(f"{arm}, seed {seed}")
            outcome = run_arm(config, arm, seed, labelled, console)
            if isinstance(outcome, int):
                console.print("stopped; continue with --resume")
                return outcome
            results.append(outcome)
            write_results(config, results)
    console.print((config.out / "table.md").read_text(encoding="utf-8"))
    return 0


def begin(config: AblationConfig) -> None:
    """Begins the comparison, or goes on with the one that is there or that results of other machines are of."""
    joined = config.resume and not (config.out / RUN_RECORD).exists()
    brought = {file.parent.name for file in config.out.glob(f"*/{RESULT}")} if joined else set()
    resume = config.resume and not brought
    RunFolder(config.out).begin(
        config, seed=config.seeds[0], data={}, resume=resume, ignored=MAY_CHANGE, beside=brought
    )


def link_photos(data: Path, out: Path, share: float) -> None:
    """A folder of links to a share of each class's training photos, the same at every call, and to all of val."""
    train, val = (read_photo_folder(data, split) for split in ("train", "val"))
    chosen: list[Path] = []
    for label in range(len(train.classes)):
        own = [photo for photo, other in zip(train.photos, train.labels, strict=True) if other == label]
        chosen += random.Random(label).sample(own, max(1, round(share * len(own))))
    with atomic_directory(out) as temporary:
        for photo in (*chosen, *val.photos):
            link = temporary / photo.relative_to(data)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photo.resolve())


def run_arm(config: AblationConfig, name: str, seed: int, labelled: Path, console: Console) -> Result | int:
    """Pretrains, probes and finetunes; the exit status instead of a result when stopped by a signal."""
    arm, folder = ARMS[name], config.out / f"{slug(name)}-seed{seed}"
    if (folder / RESULT).exists():
        return read_result(folder / RESULT, config)
    begun = folder / "pretrain"
    if arm.updates:
        status = trained(pretrain.prepare, pretraining(config, arm, seed, begun))
        if status:
            return status
    elif not (begun / "last").exists():
        pretrain.prepare(pretraining(config, arm, seed, begun)).run.save()
    probe_top1 = probed(config, arm.variant, begun, folder / "probe", console) if arm.probe else None
    tuned = replace(
        finetune.nano(),
        variant=arm.variant,
        data=labelled,
        init=begun,
        train_size=config.image_size,
        layer_decay=config.layer_decay,
        validation_epochs=config.finetune_epochs,
    )
    tuned = staged(replace(tuned, **arm.finetune), config, config.finetune_epochs, seed, folder / "finetune")
    status = trained(finetune.prepare, tuned)
    if status:
        return status
    pretrained, finetuned = (RunFolder(folder / stage).metrics() for stage in ("pretrain", "finetune"))
    result = Result(
        arm=name,
        seed=seed,
        probe_top1=probe_top1,
        finetune_top1=finetuned[-1]["val_top1"],
        pretrain_loss=pretrained[-1]["train_loss"] if arm.updates else None,
        seconds=sum(line["seconds"] for line in (*pretrained, *finetuned)),
    )
    record = {"settings": settings_of(config), "result": vars(result), "torch": torch.__version__, "cpu": processor()}
    with atomic_file(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return result


def settings_of(config: AblationConfig) -> dict[str, Any]:
    """What two runs must share to be compared, as JSON has it."""
    return {name: json.loads(json.dumps(v)) for name, v in asdict(config).items() if name not in MAY_CHANGE}


def read_result(file: Path, config: AblationConfig) -> Result:
    """A run's result, of this machine or another.

    Raises:
        ConvMAEError: it is no result, or one of a comparison with other settings.
    """
    try:
        record = read_json(file)
        settings, result = record["settings"], Result(**record["result"])
    except (KeyError, TypeError):
        raise ConvMAEError(f"{file} must hold the result of a run; it does not, so delete it to run it again") from None
    for name, value in settings_of(config).items():
        if settings.get(name) != value:
            raise ConvMAEError(
                f"{file} is of a run with {name} {settings.get(name)}, and this comparison has {value}; "
                "take runs of the same settings"
            )
    return result


def trained(prepare: Callable[[Stage], TrainingLoop], config: Stage) -> int:
    """Runs a stage, or what is left of it; returns the exit status."""
    with training_failures_in_words(config):
        return prepare(config).fit()


def slug(arm: str) -> str:
    """The name of an arm's folders."""
    return arm.replace(",", "").replace(" ", "-").lower()


def pretraining(config: AblationConfig, arm: Arm, seed: int, out: Path) -> pretrain.PretrainConfig:
    """The pretraining of an arm."""
    plain = pretrain.nano()
    plain = replace(plain, data=str(config.data), picture_epochs=config.pretrain_epochs, variant=arm.variant)
    return staged(replace(plain, model=replace(plain.model, **arm.model)), config, config.pretrain_epochs, seed, out)


def staged(plain: Stage, config: AblationConfig, epochs: int, seed: int, out: Path) -> Stage:
    """A preset as it is run here."""
    return replace(
        plain,
        image_size=config.image_size,
        optimisation=replace(plain.optimisation, epochs=epochs),
        run=run_of(config, plain.run, seed, out),
    )


def run_of(config: AblationConfig, plain: RunConfig, seed: int, out: Path) -> RunConfig:
    """Where and how a run executes; one that was begun is resumed."""
    resume = (out / RUN_RECORD).exists()
    return replace(plain, out=out, seed=seed, precision=config.precision, workers=config.workers, resume=resume)


def probed(config: AblationConfig, variant: PhotoVariant, init: Path, out: Path, console: Console) -> float:
    """Top-1 accuracy in percent of a linear probe that knows all labels, on the frozen encoder of `init`."""
    train, val = read_photo_splits(config.data)
    settings = replace(linprobe.nano(), variant=variant, data=config.data, init=init, image_size=config.image_size)
    settings = replace(settings, run=run_of(config, settings.run, config.seeds[0], out))
    setup = Setup.of(settings)
    record = initial_record(settings.variant, train.classes, config.image_size, licence="")
    preprocessing = record.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    classifier = linprobe.frozen_classifier(settings, record, console).to(setup.accelerator.device)
    cache = FeatureCache(
        folder=out,
        accelerator=setup.accelerator,
        features=linprobe.FrozenFeatures(classifier, preprocessing, setup.accelerator),
        width=classifier.num_features,
        made_of={
            "encoder": linprobe.frozen_digest(classifier),
            "precision": config.precision,
            "preprocessing": preprocessing.model_dump(),
        },
        batch_size=settings.optimisation.micro_batch_size,
        workers=config.workers,
        console=console,
    )

    def features(name: str, folder: PhotoFolder) -> tuple[torch.Tensor, torch.Tensor]:
        photos = EvaluationPhotos(folder, preprocessing)
        file = cache.computed(name, photos, range(len(photos)), photos_digest(folder, config.data))
        found = read_features(file)
        return found.values[found.readable], torch.tensor(folder.labels)[found.readable]

    (known, labels), (asked, expected) = features("train", train), features("val", val)
    return 100 * (probe_logits(known, labels, asked).argmax(dim=1) == expected).double().mean().item()


def write_results(config: AblationConfig, results: Sequence[Result]) -> None:
    """The table as Markdown, the results as JSON, and a plot of them."""
    with atomic_file(config.out / "results.json") as temporary:
        temporary.write_text(json.dumps([vars(result) for result in results], indent=2) + "\n", encoding="utf-8")
    with atomic_file(config.out / "table.md") as temporary:
        temporary.write_text(table(results), encoding="utf-8")
    draw_results(config.out / "table.png", results)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against ConvMAE by one measure."""

    difference: Difference
    adjusted: float  # its probability, for being one of several

    @property
    def shows(self) -> bool:
        """Whether the arm is better or worse than ConvMAE."""
        return self.adjusted < LEVEL and not self.difference.low <= 0 <= self.difference.high


def values_of(results: Sequence[Result], arm: str, measure: str) -> dict[int, float]:
    """Seed to accuracy, of the runs that have one."""
    found = {result.seed: getattr(result, measure) for result in results if result.arm == arm}
    return {seed: value for seed, value in found.items() if value is not None}


def arms_of(results: Sequence[Result]) -> list[str]:
    """Those that were run, ConvMAE first."""
    return list(dict.fromkeys(result.arm for result in results))


def comparisons(results: Sequence[Result]) -> dict[tuple[str, str], Comparison]:
    """(arm, measure) to its comparison, of those that two seeds or more can say something of."""
    pairs: dict[tuple[str, str], Difference] = {}
    for measure in MEASURES:
        base = values_of(results, BASELINE, measure)
        for arm in arms_of(results):
            own = values_of(results, arm, measure)
            seeds = sorted(own.keys() & base.keys())
            if arm != BASELINE and len(seeds) > 1:
                pairs[arm, measure] = paired_difference(*([some[seed] for seed in seeds] for some in (own, base)))
    adjusted = holm([difference.p for difference in pairs.values()])
    return {
        key: Comparison(difference=difference, adjusted=p)
        for (key, difference), p in zip(pairs.items(), adjusted, strict=True)
    }


def table(results: Sequence[Result]) -> str:
    """For each arm the mean over the seeds, and its difference from ConvMAE with interval and probability."""
    headings = ["arm"]
    for title in MEASURES.values():
        headings += [f"{title}, top-1 %", f"against {BASELINE} ({100 * CONFIDENCE:.0f} % interval)", "p, adjusted"]
    lines = ["| " + " | ".join([*headings, "minutes"]) + " |", "|---" * (len(headings) + 1) + "|"]
    compared = comparisons(results)
    for arm in arms_of(results):
        cells = [arm]
        for measure in MEASURES:
            values = values_of(results, arm, measure).values()
            cells.append(f"{sum(values) / len(values):.2f}" if values else "")
            cells += cells_of(compared.get((arm, measure)))
        minutes = sum(result.seconds for result in results if result.arm == arm) / 60
        lines.append("| " + " | ".join([*cells, f"{minutes:.0f}"]) + " |")
    seeds = len({result.seed for result in results})
    return (
        "\n".join([*lines, "", f"{seeds} seeds; minutes of all of them together. Bold: an ordering that shows."]) + "\n"
    )


def cells_of(comparison: Comparison | None) -> Iterator[str]:
    """Difference and probability; two empty cells where there is none."""
    if comparison is None:
        yield from ("", "")
        return
    difference = comparison.difference
    text = f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})"
    yield f"**{text}**" if comparison.shows else text
    yield f"{comparison.adjusted:.2g}"


def draw_results(path: Path, results: Sequence[Result]) -> None:
    """A dot a seed, and the difference from ConvMAE with its interval, for each arm and measure."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    arms, compared = arms_of(results), comparisons(results)
    figure = Figure(figsize=(11, 1.2 + 0.45 * len(arms)), layout="constrained")
    panels = figure.subplots(1, 2 * len(MEASURES), sharey=True)
    for (measure, title), runs, differences in zip(MEASURES.items(), panels[::2], panels[1::2], strict=True):
        for place, arm in enumerate(arms):
            values = list(values_of(results, arm, measure).values())
            runs.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.7)
            comparison = compared.get((arm, measure))
            if comparison is not None:
                found = comparison.difference
                reach = [[found.mean - found.low], [found.high - found.mean]]
                color = "tab:red" if comparison.shows else "tab:gray"
                differences.errorbar(found.mean, place, xerr=reach, fmt="o", color=color, capsize=4)
        differences.axvline(0, color="black", linewidth=0.8)
        runs.set(xlabel="top-1 %, each seed", title=title)
        differences.set(xlabel=f"points, {100 * CONFIDENCE:.0f} % interval", title=f"against {BASELINE}")
    for axes in panels:
        axes.set_yticks(range(len(arms)), arms)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()  # all share it
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main() -> int:
    """Command line."""
    return run_ablation(tyro.cli(AblationConfig, prog="python -m training.ablation"), Terminal(highlight=False))


if __name__ == "__main__":
    run_program(main)
