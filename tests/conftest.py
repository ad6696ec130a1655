"""What the machine can is given to the code under test, so that every test means the same on every machine."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from convmae_deploy.backends import openvino_backend
from convmae_deploy.backends.gpu import find_gpu

pytest_plugins = ("tests.processes",)

GiveOpenVino = Callable[..., None]
ask_openvino = openvino_backend.openvino_capabilities  # the function itself, which tests replace
# Fixtures whose first use takes seconds: a server, a browser, a traced model, an interpreter with torch in it.
SLOW_FIXTURES = {
    "any_size",
    "exported",
    "graph",
    "locked_server",
    "own_server",
    "page",
    "run_processes",
    "server",
    "store",
    "three_tasks",
    "trained",
    "two_models",
    "video_server",
}
TOGETHER = ("tests/export/", "tests/serving/")  # folders whose session fixtures are costly: each runs in one process
PLAIN_CPU = ("FP32", "INT8")  # what OpenVINO finds on a CPU without instructions for half precision, by its own names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu", action="store_true", help="run the tests that need a CUDA device, and only these; or -m gpu"
    )


def wants_gpu(config: pytest.Config) -> bool:
    """Whether the tests that need a CUDA device are to run: skipped where there is none, never where there is one."""
    return bool(config.getoption("--gpu")) or config.getoption("markexpr") == "gpu"


def pytest_configure(config: pytest.Config) -> None:
    if not wants_gpu(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the programs that tests start too


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    wanted = wants_gpu(config)
    others = [item for item in items if (item.get_closest_marker("gpu") is not None) != wanted]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
    if wanted and not find_gpu():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU with its driver"))
    # They go to the processes in this order: what takes long comes first, so that none is left alone with it.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith(TOGETHER), item.path not in slow))


def pytest_collection_finish() -> None:
    """What importing has left stays until the end: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """As `--dist loadfile`, but for the folders that stay together."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class LoadFolders(LoadFileScheduling):  # type: ignore[misc]  # of an untyped package
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return next((folder for folder in TOGETHER if file.startswith(folder)), file)

    return LoadFolders(config, log)


@pytest.fixture(scope="session", autouse=True)
def plain_cpu() -> Iterator[None]:
    """OpenVINO computes in full precision, whatever the CPU has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_backend, "openvino_capabilities", lambda: PLAIN_CPU)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch.compile made in other runs, perhaps for a CPU with other limits, is not taken."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module", autouse=True)
def own_precision() -> Iterator[None]:
    """Accelerate keeps the first precision of a process, which in an earlier file may be what its CPU is best at."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def give_openvino(monkeypatch: pytest.MonkeyPatch) -> GiveOpenVino:
    """Gives OpenVINO a CPU with these capabilities, by its own names."""

    def give(*capabilities: str) -> None:
        monkeypatch.setattr(openvino_backend, "openvino_capabilities", lambda: capabilities)

    return give
