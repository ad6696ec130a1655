"""The precision of a training follows from what its device can, which is given to the code."""

from typing import Any

import pytest

from convmae_deploy.engine.precision import fast_precision


@pytest.mark.parametrize(
    ("device", "capabilities", "precision", "reason"),
    [
        ("cuda", {}, "bf16", "the default on a GPU"),
        ("cuda", {"avx512_bf16": False, "amx_bf16": False}, "bf16", "the default on a GPU"),
        ("mps", {}, "bf16", "the default on a GPU"),
        ("cpu", {"avx512_bf16": True, "amx_bf16": False}, "bf16", "as this CPU has AVX512-BF16"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, "bf16", "as this CPU has AMX-BF16"),
        ("cpu", {"avx512_bf16": True, "amx_bf16": True}, "bf16", "as this CPU has AVX512-BF16 and AMX-BF16"),
        ("cpu", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32", "neither AVX512-BF16 nor AMX-BF16"),
        ("cpu", {"avx512_f": True, "amx_tile": True, "avx512_bf16": False}, "fp32", "neither AVX512-BF16 nor AMX-BF16"),
        ("cpu", {}, "fp32", "it is not known whether this CPU"),
        ("cpu", {"architecture": "aarch64", "bf16": True}, "fp32", "it is not known whether this CPU"),
        ("cpu", {"avx512_bf16": "no"}, "fp32", "neither AVX512-BF16 nor AMX-BF16"),
    ],
)
def test_bf16_is_for_devices_that_are_fast_at_it(
    device: str, capabilities: dict[str, Any], precision: str, reason: str
) -> None:
    found, why = fast_precision(device, capabilities)
    assert found == precision and reason in why
