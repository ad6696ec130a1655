"""What the machine can is given to the code under test, so that every test means the same on every machine."""

import os
from collections.abc import Callable, Iterator

import pytest

from convmae_deploy.backends import openvino_backend

pytest_plugins = ("tests.processes",)

GiveOpenVino = Callable[..., None]
ask_openvino = openvino_backend.openvino_capabilities  # the function itself, which tests replace
PLAIN_CPU = ("FP32", "INT8")  # what OpenVINO finds on a CPU without instructions for half precision, by its own names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run the tests that need a CUDA device, and only these")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the programs that tests start too


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--gpu")
    others = [item for item in items if (item.get_closest_marker("gpu") is not None) != wanted]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session", autouse=True)
def plain_cpu() -> Iterator[None]:
    """OpenVINO computes in full precision, whatever the CPU has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_backend, "openvino_capabilities", lambda: PLAIN_CPU)
        yield


@pytest.fixture
def give_openvino(monkeypatch: pytest.MonkeyPatch) -> GiveOpenVino:
    """Gives OpenVINO a CPU with these capabilities, by its own names."""

    def give(*capabilities: str) -> None:
        monkeypatch.setattr(openvino_backend, "openvino_capabilities", lambda: capabilities)

    return give
