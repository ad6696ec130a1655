"""What a machine refuses a training, as one sentence with what to do: memory, decoding processes, disks."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from convmae_deploy.data.workers import NO_OPEN_FILES, NO_SHARED_MEMORY
from convmae_deploy.engine.training_config import TrainingConfig
from convmae_deploy.files import RUN_RECORD
from convmae_deploy.program import BROKEN, FULL, NO_MEMORY, failures_in_words

# What PyTorch says where a process that decodes cannot hand over what it decoded.
_SHARED_MEMORY = re.compile(
    rf"Bus error|shared memory\(shm\)|shared memory object|file </?torch_|exit code {NO_SHARED_MEMORY}\b"
)
_ENDED_PROCESS = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed|exited unexpectedly)")
_SIGNAL = re.compile(r"killed by signal: (\w[\w ]*)")
_OPEN_FILES = re.compile(rf"Too many open files|received 0 items of ancdata|exit code {NO_OPEN_FILES}\b")


@contextmanager
def training_failures_in_words(config: TrainingConfig) -> Iterator[None]:
    """`failures_in_words` of a training, and of the thread that writes for TensorBoard.

    Raises:
        ConvMAEError: what the machine refused, as one sentence.
    """
    hook = threading.excepthook
    threading.excepthook = _tell_of_bugs_alone
    with failures_in_words(partial(_in_words, config)):
        yield
    threading.excepthook = hook  # only here: TensorBoard's thread writes once more while a program that failed ends


def _tell_of_bugs_alone(arguments: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread ends with what its disk refuses, which is raised once more where the next line is logged."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def _in_words(config: TrainingConfig, error: Exception) -> str | None:
    run, text = config.run, f"{error} {error.__cause__ or ''}"
    begun = (run.out / RUN_RECORD).is_file()
    again = "and continue with --resume" if begun else "and start again"
    if _SHARED_MEMORY.search(text):
        return (
            f"the {run.workers} decoding processes need more shared memory than there is in /dev/shm; give the "
            "container more (docker run --shm-size 8g), or take fewer --workers or a smaller --micro-batch-size, "
            f"{again}"
        )
    if _OPEN_FILES.search(text):
        return (
            "the decoding processes need more open files than are allowed; raise ulimit -n or take fewer --workers, "
            f"{again}"
        )
    if _ENDED_PROCESS.search(text):
        how = f" ({signal[1]})" if (signal := _SIGNAL.search(text)) else ""
        return (
            f"one of the {run.workers} decoding processes was ended from outside{how}, most often for want of memory; "
            f"take fewer --workers, 0 decodes in the training process itself, {again}"
        )
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY.search(text):
        return (
            f"there is not enough memory for the model and up to {config.optimisation.micro_batch_size} files at once; "
            "take a smaller --micro-batch-size, --grad-checkpointing where the program has it, or, for that of the "
            f"machine, fewer --workers, {again}"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"the disk of {run.out} is full ({error.strerror}); the checkpoints in it are whole: free some room there "
            f"{again}"
        )
    if isinstance(error, OSError) and error.filename is not None:
        if Path(os.fsdecode(error.filename)).is_relative_to(run.out):
            cannot = "can no longer be" if begun else "cannot be"
            return f"the run folder {run.out} {cannot} written to ({error.strerror}); put that right {again}"
    elif isinstance(error, OSError) and error.errno in BROKEN:
        return f"a disk refuses to go on ({error.strerror}); look after that of {run.out} and that of the data, {again}"
    return None
