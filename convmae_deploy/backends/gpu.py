"""The NVIDIA GPU of this machine, asked of the driver itself: no library of CUDA is needed, nor loaded."""

import ctypes
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: page-locked for all contexts


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first GPU that the driver shows to this process."""

    name: str
    compute_capability: str  # for instance "8.9"
    cuda: str  # newest CUDA that the driver runs, for instance "13.0"


def find_gpu() -> Gpu | None:
    """The GPU that programs run on by default; None where there is no driver, or none that works."""
    driver = _driver()
    if driver is None:
        return None
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    failed = (
        driver.cuDriverGetVersion(ctypes.byref(version))
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if failed:
        return None
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def page_locked(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros in memory that is kept in place, so that the GPU copies from it by itself; usual ones where it refuses.

    Never run on a GPU yet.
    """
    array = np.zeros(shape, dtype)
    driver = _driver()
    if driver is not None and array.nbytes:
        address = array.ctypes.data
        with _context(driver) as entered:
            locked = entered and not driver.cuMemHostRegister_v2(
                ctypes.c_void_p(address), ctypes.c_size_t(array.nbytes), _PORTABLE
            )
        if locked:
            weakref.finalize(array, _unlock, driver, address).atexit = False  # by then the driver may be gone
    return array


def _unlock(driver: Any, address: int) -> None:
    with _context(driver) as entered:
        if entered:
            driver.cuMemHostUnregister(ctypes.c_void_p(address))


@contextmanager
def _context(driver: Any) -> Iterator[bool]:
    """The context that libraries share on the first GPU, for this thread; whether it can be had."""
    device, context, left = ctypes.c_int(0), ctypes.c_void_p(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        yield False
        return
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        yield False
        return
    try:
        entered = not driver.cuCtxPushCurrent_v2(context)
        yield entered
        if entered:
            driver.cuCtxPopCurrent_v2(ctypes.byref(left))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _driver() -> Any:
    """The driver's library; None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
