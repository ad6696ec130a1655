"""Half precision made in PyTorch: which parts of a model compute in it, and what stays in float32 there.

A strongly typed TensorRT engine, and every runtime that computes a graph as it is written, takes its precision from the
graph. So the casts are in the model that is traced. A task says which parts compute in it; outside of these nothing
changes: pooling of a classifier's tokens and its head, anchors, boxes, overlaps, suppression, scores, grids of samples.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import DecomposedRelativePosition, RelativePositionTable
from export.graphs.pooling import MatrixPooling

HalfPrecision = Literal["fp16", "bf16"]
DTYPES: dict[HalfPrecision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class HalfParts:
    """Modules of a model by their paths."""

    half: tuple[str, ...]  # they take anything, compute in half precision, and give float32
    float32: tuple[str, ...] = ()  # within those: the layers that give logits


# Layers that compute in float32 wherever they are, and give half precision again. Softmax is none of them, since
# attention has no module for it: see `SoftmaxInFloat32`.
FLOAT32_LAYERS = (nn.LayerNorm, RelativePositionTable, DecomposedRelativePosition, MatrixPooling)


class SoftmaxInFloat32(TorchFunctionMode):
    """While it is on, attention in half precision takes its softmax in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention` of (B, h, N, d): products in the given type, softmax in float32."""
    scale = query.shape[-1] ** -0.5
    scores = ((query * scale) @ key.transpose(2, 3)).float()  # (B, h, N, N); scaled before it can overflow
    scores = scores if bias is None else scores + bias.float()
    attended: Tensor = scores.softmax(dim=3).to(value.dtype) @ value
    return attended


def in_half_precision(wrapper: nn.Module, parts: HalfParts, precision: HalfPrecision) -> nn.Module:
    """A copy of an export wrapper in evaluation mode, these parts of whose model compute in half precision.

    Raises:
        ConvMAEError: a weight is too large for the type.
    """
    half = copy.deepcopy(wrapper).requires_grad_(False)
    model = half.get_submodule("model")
    dtype = DTYPES[precision]
    kept = [model.get_submodule(path) for path in parts.float32]
    for path in parts.half:
        part = attrgetter(path)(model)
        if part is None:  # the model has none
            continue
        fold_batch_norms(part)
        for name, module in part.named_modules():
            if module in kept:
                replace_forward(module, torch.float32, torch.float32)
            elif isinstance(module, FLOAT32_LAYERS):
                replace_forward(module, torch.float32, dtype)
            else:
                convert_own(module, f"{path}.{name}".rstrip("."), dtype)
        replace_forward(part, dtype, torch.float32, SoftmaxInFloat32)
    return half


def convert_own(module: nn.Module, path: str, dtype: torch.dtype) -> None:
    """Puts a module's own parameters and buffers into another type."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        largest = float(tensor.abs().max())
        if largest > torch.finfo(dtype).max:
            raise ConvMAEError(
                f"{path}.{name} has a weight of {largest:.3g}, and {dtype} ends at {torch.finfo(dtype).max:.3g}; "
                "export it in bf16"
            )
        tensor.data = tensor.data.to(dtype)


def replace_forward(
    module: nn.Module, inputs: torch.dtype, outputs: torch.dtype, mode: Callable[[], Any] | None = None
) -> None:
    """Lets a module take its inputs in one type and give its outputs in another."""
    forward = module.forward

    def cast_forward(*args: Any) -> Any:
        given = cast(args, inputs)
        if mode is None:
            return cast(forward(*given), outputs)
        with mode():
            return cast(forward(*given), outputs)

    module.forward = cast_forward


def cast(value: Any, dtype: torch.dtype) -> Any:
    """All floating-point tensors of a value, of lists, tuples, dictionaries or dataclasses, in another type."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(cast(entry, dtype) for entry in value)
    if isinstance(value, dict):
        return {key: cast(entry, dtype) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: cast(getattr(value, field.name), dtype) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def fold_batch_norms(part: nn.Module) -> None:
    """Makes every BatchNorm that follows a convolution part of its weights, in float32.

    Its statistics may lie outside of what half precision holds.
    """
    for module in list(part.modules()):
        children = list(module.named_children())
        for (name, convolution), (norm_name, norm) in zip(children, children[1:], strict=False):
            if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d):
                transposed = isinstance(convolution, nn.ConvTranspose2d)
                setattr(module, name, fuse_conv_bn_eval(convolution, norm, transpose=transposed))
                setattr(module, norm_name, nn.Identity())
