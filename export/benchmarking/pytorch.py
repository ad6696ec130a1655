"""The PyTorch side of a benchmark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.tasks import TASKS
from export.benchmarking.contenders import Contender
from export.tasks import open_task

FloatArray = NDArray[np.float32]


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model compiled with static shapes: each batch size for itself, during the warm-up."""
    result: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return result


def torch_output(
    model: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> Callable[[FloatArray], FloatArray]:
    """A model from float32 images to its float32 output, the casts to and from its precision included."""

    @torch.inference_mode()
    def run(images: FloatArray) -> FloatArray:
        output: FloatArray = model(torch.from_numpy(images).to(dtype)).float().numpy()
        return output

    return run


def torch_run(
    contender: Contender, bundle: Bundle, checkpoint: Path, threads: int
) -> tuple[Callable[[FloatArray], dict[str, NDArray[Any]]], str]:
    """The checkpoint's model on the CPU as a contender says, and its name.

    Raises:
        ConvMAEError: the checkpoint cannot be opened.
    """
    torch.set_num_threads(threads)
    task = open_task(checkpoint, bundle.manifest.preprocessing.input_size, bundle.manifest.task)
    description = f"torch {torch.__version__} (CPU)"
    kind = TASKS[task.task]
    if kind.GIVES_LISTS:
        return task.reference, description
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[contender.precision]
    model = task.model.to(dtype)
    run = torch_output(compiled(model) if contender.way == "compiled" else model, dtype)
    return lambda images: {kind.KEY_OUTPUT: run(images)}, description
