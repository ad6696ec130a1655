"""Which layer of a float16 model overflows? Run in PyTorch, which rounds after every operation."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from export.graphs.to_onnx import module_path
from export.verification.inputs import Batch

Look = Callable[[str, Any, Any], None]  # path of a module, its inputs, its outputs


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A layer whose inputs are finite and whose outputs are not."""

    batch: Batch
    module: str  # path in the model
    largest: float  # magnitude of what the layer gives in float32

    def __str__(self) -> str:
        return (
            f"{self.module} overflows float16 on {self.batch.name}: it gives up to {self.largest:.3g} in float32, and "
            f"float16 ends at {torch.finfo(torch.float16).max:.0f}; export bf16 instead"
        )


@torch.inference_mode()
def find_overflow(half: nn.Module, full: nn.Module, batches: Iterable[Batch]) -> Overflow | None:
    """The first layer that overflows on the first of the batches where one does; None: none does.

    Args:
        half: an export wrapper in float16.
        full: the same in float32.
        batches: the inputs.
    """
    for batch in batches:
        images = torch.from_numpy(batch.images)
        path = first_overflowing(half, images)
        if path is not None:
            return Overflow(batch=batch, module=module_path(path), largest=magnitude(full, path, images))
    return None


def first_overflowing(wrapper: nn.Module, images: Tensor) -> str | None:
    """Path of the innermost module that is the first to make something infinite of what is finite."""
    found: list[str] = []

    def look(path: str, given: Any, result: Any) -> None:
        if not found and all_finite(given) and not all_finite(result):
            found.append(path)

    with watching(wrapper, look):
        wrapper(images)
    return found[0] if found else None


def magnitude(wrapper: nn.Module, path: str, images: Tensor) -> float:
    """The largest absolute value that a module gives."""
    largest = [0.0]

    def look(_: str, __: Any, result: Any) -> None:
        largest.extend(float(tensor.abs().max()) for tensor in floats(result))

    with watching(wrapper, look, only=path):
        wrapper(images)
    return max(largest)


@contextmanager
def watching(wrapper: nn.Module, look: Look, only: str | None = None) -> Iterator[None]:
    """Calls `look` with the path, the inputs and the outputs of each module, the inner ones first, while it is on."""
    handles = [
        module.register_forward_hook(lambda _, given, result, path=path: look(path, given, result))
        for path, module in wrapper.named_modules()
        if path and only in (None, path)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def all_finite(value: Any) -> bool:
    """Whether all floating-point tensors of a value are."""
    return all(bool(tensor.isfinite().all()) for tensor in floats(value))


def floats(value: Any) -> list[Tensor]:
    """The floating-point tensors of a value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
