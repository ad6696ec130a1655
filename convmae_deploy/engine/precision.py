"""The precision that a training computes in where nobody chose one: what its device is fast at."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

# What a CPU needs for bf16, by PyTorch's names and by their own; without any of these it is emulated, slower than fp32.
BF16_INSTRUCTIONS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}


def cpu_capabilities() -> Mapping[str, Any]:
    """What this CPU can, by PyTorch's names; nothing where PyTorch does not say, or lacks the kernels that use it."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return {}
    found: Mapping[str, Any] = ask()
    return found


def fast_precision(device_type: str, capabilities: Mapping[str, Any]) -> tuple[Precision, str]:
    """bf16 on a GPU and on a CPU that has instructions for it, else fp32, also where that is not known.

    Args:
        device_type: PyTorch's, for instance "cpu" or "cuda".
        capabilities: of the CPU, as `cpu_capabilities` gives them.

    Returns:
        The precision and why, a clause.
    """
    if device_type != "cpu":
        return "bf16", "the default on a GPU"
    found = [name for key, name in BF16_INSTRUCTIONS.items() if capabilities.get(key) is True]
    if found:
        return "bf16", f"as this CPU has {' and '.join(found)}"
    if not any(key in capabilities for key in BF16_INSTRUCTIONS):
        return "fp32", "as it is not known whether this CPU has instructions for bf16"
    return "fp32", f"as this CPU has neither {' nor '.join(BF16_INSTRUCTIONS.values())}, without which bf16 is slower"
