"""The PyTorch side of a benchmark."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from convmae_deploy.backends.base import FloatArray, InputArray
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.tasks import TASKS
from export.runtimes.combinations import Combination
from export.runtimes.runners import Runner
from export.tasks import open_task
from export.tasks.base import normalised


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model compiled with static shapes: each batch size for itself, during the warm-up."""
    result: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return result


def torch_output(
    model: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> Callable[[FloatArray], FloatArray]:
    """A model from images to its float32 output, the casts to and from its precision included."""

    @torch.inference_mode()
    def run(images: FloatArray) -> FloatArray:
        output: FloatArray = model(torch.from_numpy(images).to(dtype)).float().numpy()
        return output

    return run


def torch_run(combination: Combination, bundle: Bundle, checkpoint: Path, threads: int) -> tuple[Runner, str]:
    """The checkpoint's model on the CPU as a combination says, and its name.

    Raises:
        ConvMAEError: the checkpoint cannot be opened.
    """
    torch.set_num_threads(threads)
    task = open_task(checkpoint, bundle.manifest.preprocessing.input_size, bundle.manifest.task)
    description = f"torch {torch.__version__} (CPU)"
    kind, spec = TASKS[task.task], bundle.manifest.preprocessing

    def given(images: InputArray) -> FloatArray:
        return normalised(torch.from_numpy(images), spec).numpy() if spec.dtype == "uint8" else images

    if kind.GIVES_LISTS:
        return lambda images: task.reference(given(images)), description
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[combination.precision]
    model = task.model.to(dtype)
    run = torch_output(compiled(model) if combination.runtime == "compiled" else model, dtype)
    return lambda images: {kind.KEY_OUTPUT: run(given(images))}, description
