"""The PyTorch side of a benchmark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.tasks.base import LOGITS
from export.benchmarking.contenders import Contender
from export.graphs.tasks import open_task

FloatArray = NDArray[np.float32]


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model compiled with static shapes: each batch size for itself, during the warm-up."""
    result: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return result


def torch_logits(
    model: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> Callable[[FloatArray], FloatArray]:
    """A model from float32 images to float32 logits, the casts to and from its precision included."""

    @torch.inference_mode()
    def run(images: FloatArray) -> FloatArray:
        logits: FloatArray = model(torch.from_numpy(images).to(dtype)).float().numpy()
        return logits

    return run


def torch_run(
    contender: Contender, bundle: Bundle, checkpoint: Path, threads: int
) -> tuple[Callable[[FloatArray], dict[str, NDArray[Any]]], str]:
    """The checkpoint's model on the CPU as a contender says, and its name.

    Raises:
        ConvMAEError: the checkpoint cannot be opened.
    """
    torch.set_num_threads(threads)
    task = open_task(checkpoint, bundle.manifest.preprocessing.input_size)
    description = f"torch {torch.__version__} (CPU)"
    if task.task == "detection":
        return task.reference, description
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[contender.precision]
    model = task.model.to(dtype)
    run = torch_logits(compiled(model) if contender.way == "compiled" else model, dtype)
    return lambda images: {LOGITS: run(images)}, description
