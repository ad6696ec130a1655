"""What a training says before its first update: where it runs, on what, in which updates and at what learning rate."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from convmae_deploy.data.determinism import StepSampler
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.machine import processor
from convmae_deploy.models.depthwise import Algorithms
from convmae_deploy.printing import counted

# What a setting that may change on resume does to what is learnt; nothing where it says nothing.
MAY_CHANGE_ON_RESUME = {
    **dict.fromkeys(("data", "out", "init", "resume", "check_data", "workers", "save_minutes", "licence"), ""),
    **dict.fromkeys(("picture_epochs", "validation_epochs"), ""),
    **dict.fromkeys(("compile", "grad_checkpointing"), "the same but for rounding"),
    **dict.fromkeys(("precision", "base_lr", "clip_grad"), ""),  # for a run that met numbers that are not finite
    "micro_batch_size": "an update holds the same files; rounding, and what is drawn or averaged within a "
    "micro-batch, as mixing, dropped paths and BatchNorm, may differ",
    "processes": "an update holds as many files; what each process draws for its own, as mixing and dropped paths, and "
    "the order of shards may differ",
    "epochs": "the learning rate falls over that many",
}


def start_lines(
    accelerator: Accelerator,
    precision: str,
    facts: Mapping[str, Any],
    optimisation: OptimisationConfig,
    steps: StepSampler,
) -> list[str]:
    """What stands at the start of a run, a line each.

    Args:
        accelerator: its devices.
        precision: and why it is that one.
        facts: about the data, as run.json has them.
        optimisation: as it was asked for.
        steps: what the data and the devices make of it.
    """
    kind = "videos" if "train_videos" in facts else "photos"
    schedule = optimisation.holding(steps.batch_size)
    lines = [
        f"device: {device_in_words(accelerator)}; precision {precision}",
        f"data: {data_in_words(facts, kind)}",
        f"updates: {updates_in_words(optimisation, steps, kind)}",
        f"learning rate: {schedule.learning_rate:g}, which is --base-lr {optimisation.base_lr:g} for 256 {kind}, times "
        f"{steps.batch_size} of an update / 256",
    ]
    notice = schedule.warmup_notice(steps.steps_per_epoch)
    return lines if notice is None else [*lines, notice]


def device_in_words(accelerator: Accelerator) -> str:
    """The device of each process."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    elif accelerator.device.type == "cpu":
        name = f"CPU ({processor()}, {counted(torch.get_num_threads(), 'thread')})"
    else:
        name = str(accelerator.device)
    processes = accelerator.num_processes
    return name if processes == 1 else f"{name}, and the same or alike for each of {processes} processes"


def data_in_words(facts: Mapping[str, Any], kind: str) -> str:
    """How much there is to train and to validate on.

    Args:
        facts: of run.json.
        kind: photos or videos.
    """
    one = kind.removesuffix("s")
    if "samples" in facts:
        return f"{counted(facts['samples'], one)} to train on, in {counted(facts['shards'], 'shard')}"
    parts = [f"{counted(facts[f'train_{kind}'], one)} to train on"]
    if "train_objects" in facts:
        parts.append(f"{counted(facts['train_objects'], 'object')} in them")
    if "classes" in facts:
        parts.append(f"{len(facts['classes'])} classes")
    if f"val_{kind}" in facts:
        parts.append(f"{facts[f'val_{kind}']} to validate on")
    return ", ".join(parts)


def updates_in_words(optimisation: OptimisationConfig, steps: StepSampler, kind: str) -> str:
    """How many updates there are, what one holds, and what an epoch leaves out.

    Args:
        optimisation: as it was asked for.
        steps: of one process.
        kind: photos or videos.
    """
    count, held, asked = steps.steps_per_epoch, steps.batch_size, optimisation.batch_size
    words = f"{count} an epoch, each of {held} {kind}"
    if held < min(asked, steps.length):
        words += f" (as many for each of {steps.world_size} processes, where --batch-size says {asked})"
    elif held < asked:
        words += f" (there are no more, where --batch-size says {asked})"
    if steps.micro_batches_per_step > 1:
        words += f", accumulated over {steps.micro_batches_per_step} micro-batches"
    unused = steps.length - count * held
    if unused:
        left = f"{counted(unused, kind.removesuffix('s'))} {'is' if unused == 1 else 'are'} left over"
        words += f"; {left} in every epoch, other ones each time"
    return f"{words}; epochs: {optimisation.epochs}"


def algorithms_in_words(algorithms: Algorithms, seconds: Mapping[str, Mapping[str, float]]) -> str:
    """How visible cells are convolved on this device, and how long each algorithm took.

    Args:
        algorithms: the fastest.
        seconds: of all, as `models.depthwise.fastest` gives them.
    """
    parts = {
        what: ", ".join(
            f"{name} {1000 * needed:.3g}" if math.isfinite(needed) else f"{name} does not run"
            for name, needed in measured.items()
        )
        for what, measured in seconds.items()
    }
    return (
        f"depthwise convolution of visible cells: {algorithms.convolution} (ms: {parts['convolution']}); "
        f"gradient of its weight: {algorithms.gradient} (ms: {parts['gradient']})"
    )


def changes_in_words(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A line for each setting that a resumed run has otherwise than before, as (before, now)."""
    lines = []
    for name, (before, now) in changes.items():
        setting = name.split(".")[-1]
        if setting in ("resume", "out"):  # what a resumed run is told by
            continue
        effect = MAY_CHANGE_ON_RESUME.get(setting)
        flag = setting if setting == "processes" else f"--{setting.replace('_', '-')}"
        lines.append(f"changed from here on: {flag} {before} to {now}" + (f" ({effect})" if effect else ""))
    return lines
