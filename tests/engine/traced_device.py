"""A GPU that computes nothing: training runs on it as on a real one, and what would make the host wait is counted.

Tensors are fake (PyTorch's FakeTensorMode): they have shapes, types and a device, no values, so that operations on two
devices fail, autocast chooses its types, and no driver is needed. What depends on values (which boxes overlap) makes
the host wait for a GPU; here it is counted and answered by a number of rows that such code can go on with.

Backward passes ask for the device's streams, which CUDA has none of without a driver. They run on PyTorch's device for
backends in Python, `stand_in()`, with the operations that autocast knows.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROWS = 3  # that every question of the kind "which are there" or "how many" is answered with
IN_HALF = ("linear", "matmul", "bmm", "mm", "addmm", "conv2d", "conv3d", "scaled_dot_product_attention")
IN_FLOAT32 = (
    "layer_norm",
    "group_norm",
    "mse_loss",
    "l1_loss",
    "cross_entropy_loss",
    "binary_cross_entropy_with_logits",
)
aten = torch.ops.aten


class HostWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what waits for the device, by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = next((value.device for value in _tensors(args) if value.device.type != "cpu"), None)
        if func is aten._local_scalar_dense.default and device is None:
            self.counts["figures"] += args[0].storage_offset() == 0  # what an update was asked about on its way here
            return _scalar(args[0])
        if func in ANSWERS and device is not None:
            # a fake tensor is listed number by number, a real one is copied at once
            in_list = func is aten._local_scalar_dense.default and args[0].storage_offset() > 0
            self.counts[func.overloadpacket.__name__] += not in_list
            return ANSWERS[func](*args, **kwargs)
        if func is aten.index.Tensor and (chosen := _chosen(*args)) is not None:
            self.counts["index"] += 1
            return chosen
        if _copies_between_devices(func, args, kwargs) and not _does_not_wait(func, args, kwargs):
            self.counts["copy"] += 1
        return func(*args, **kwargs)


def _tensors(args: Any) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _copies_between_devices(func: Any, args: Any, kwargs: Any) -> bool:
    if func is aten._to_copy.default:
        device = kwargs.get("device")
        return device is not None and (torch.device(device).type == "cpu") is not (args[0].device.type == "cpu")
    if func is aten.copy_.default:
        return bool((args[0].device.type == "cpu") is not (args[1].device.type == "cpu"))
    return False


def _does_not_wait(func: Any, args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))


def _some_indices(mask: Tensor) -> Tensor:
    return mask.new_zeros((min(ROWS, mask.numel()), mask.dim()), dtype=torch.int64)


def _scalar(value: Tensor) -> Any:
    return False if value.dtype == torch.bool else 1.0 if value.dtype.is_floating_point else ROWS


def _chosen(values: Tensor, indices: Any) -> Tensor | None:
    """What a mask chooses; None where all indices are numbers."""
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    return values.new_zeros((ROWS, *values.shape[masks[0].dim() :])) if masks else None


ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: _some_indices,
    aten._local_scalar_dense.default: _scalar,
    aten.masked_select.default: lambda values, mask: values.new_zeros(min(ROWS, mask.numel())),
    aten._unique2.default: lambda values, *args, **kwargs: tuple(values.new_zeros(ROWS) for _ in range(3)),
    aten.repeat_interleave.Tensor: lambda repeats, **kwargs: repeats.new_zeros(ROWS),
    aten.equal.default: lambda *args: True,
}


def host_waits(device: str, work: Callable[[torch.device], None]) -> dict[str, int]:
    """What `work` on a device waits for, by the name of the operation.

    Args:
        device: its type.
        work: makes all its tensors itself.
    """
    import torchvision  # noqa: F401  # registers its operations

    answers = {
        torch.ops.torchvision.nms.default: lambda boxes, *_: boxes.new_zeros(min(ROWS, len(boxes)), dtype=torch.int64)
    }
    ANSWERS.update(answers)
    waits = HostWaits()
    with FakeTensorMode(), as_if_there_was_a_gpu(), waits, _Constants():
        work(torch.device(device))
    return dict(waits.counts)


class _Constants(TorchFunctionMode):
    """Numbers of the host are copied to the device as they are in truth: PyTorch hides that from other modes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = func is torch.tensor or (func is torch.as_tensor and not isinstance(args[0], Tensor))
        if numbers and kwargs.get("device") is not None:
            made = func(*args, **kwargs | {"device": "cpu"})
            made.constant = None  # else its copy is made in truth
            return made.to(kwargs["device"])
        return func(*args, **kwargs)


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself with fake parameters and buffers on the device, in place of real ones; within `host_waits`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        for name, value in vars(module).items():
            if isinstance(value, list) and value and isinstance(value[0], Tensor):  # anchors, moved by the first batch
                setattr(module, name, [torch.empty(each.shape, dtype=each.dtype, device=device) for each in value])
    return model


@contextmanager
def as_if_there_was_a_gpu() -> Iterator[None]:
    """Autocast to half precision is not switched off for want of a GPU."""
    kept = torch.cuda.amp.common.amp_definitely_not_available, torch.cuda.is_bf16_supported
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    try:
        yield
    finally:
        torch.cuda.amp.common.amp_definitely_not_available, torch.cuda.is_bf16_supported = kept


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def stand_in() -> str:
    """A device for this process whose backward passes run without a driver; CUDA's do not from then on."""
    _setup_privateuseone_for_python_backend("tracer", _Module())
    key = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]
    fallback = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # type: ignore[no-untyped-call]
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")  # type: ignore[no-untyped-call]
    kept.extend([fallback, library])
    for names, in_half in ((IN_HALF, True), (IN_FLOAT32, False)):
        for name in names:
            library.impl(name, _cast_first(getattr(aten, name).default, key, in_half))  # type: ignore[no-untyped-call]
    return "tracer"


kept: list[Any] = []  # a library that nobody holds is taken back


def _cast_first(operation: Any, key: Any, in_half: bool) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("tracer") if in_half else torch.float32

        def cast(value: Any) -> Any:
            is_real = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if is_real else value

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return operation(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return run
