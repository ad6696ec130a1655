"""The driver is asked, and every answer that is no GPU is none."""

import ctypes
from typing import Any

import numpy as np
import pytest

from convmae_deploy.backends.gpu import Gpu, find_gpu, page_locked


class FakeDriver:
    """libcuda with one GPU, one of whose functions may fail."""

    def __init__(self, count: int = 1, failing: str = "") -> None:
        self.count, self.failing = count, failing
        self.called: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        values: dict[str, Any] = {"cuDeviceGetCount": self.count, "cuDriverGetVersion": 13020, "cuDeviceGet": 0}

        def call(*arguments: Any) -> int:
            self.called.append((name, getattr(arguments[0], "value", None) if arguments else None))
            if name == self.failing:
                return 100
            if name == "cuDeviceGetName":
                ctypes.memmove(arguments[0], b"NVIDIA L4\0", 10)
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 9}[arguments[1]]
            elif name in values:
                arguments[0]._obj.value = values[name]
            return 0

        return call


def test_the_gpu_s_name_capability_and_cuda_are_the_driver_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert find_gpu() == Gpu(name="NVIDIA L4", compute_capability="8.9", cuda="13.2")


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGetCount", "cuDeviceGetName", "cuDeviceGetAttribute"])
def test_a_driver_that_does_not_work_is_no_gpu(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(failing=failing))
    assert find_gpu() is None


def test_no_driver_and_no_device_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(count=0))
    assert find_gpu() is None

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find_gpu() is None


def test_memory_is_locked_until_the_array_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    array = page_locked((2, 3), np.float32)
    address = array.ctypes.data
    assert array.shape == (2, 3) and not array.any()
    assert ("cuMemHostRegister_v2", address) in driver.called
    view = array[:1]
    del array
    assert ("cuMemHostUnregister", address) not in driver.called
    del view
    assert driver.called[-4:] == [
        ("cuCtxPushCurrent_v2", None),
        ("cuMemHostUnregister", address),
        ("cuCtxPopCurrent_v2", None),
        ("cuDevicePrimaryCtxRelease_v2", 0),
    ]


@pytest.mark.parametrize(
    "failing", ["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemHostRegister_v2"]
)
def test_memory_that_the_driver_does_not_lock_is_as_any_other(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    driver = FakeDriver(failing=failing)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    array = page_locked((2, 3), np.uint8)
    array[:] = 7
    assert array.dtype == np.uint8 and (array == 7).all()
    del array
    names = [name for name, _ in driver.called]
    assert "cuMemHostUnregister" not in names
    assert names.count("cuDevicePrimaryCtxRetain") - (failing == "cuDevicePrimaryCtxRetain") == names.count(
        "cuDevicePrimaryCtxRelease_v2"
    )
