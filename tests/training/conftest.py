"""What tests of the training programs share."""

import pytest

from convmae_deploy.engine import training_config
from convmae_deploy.models.convmae import MODELS


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks this machine's CPU whether it has instructions for bf16."""
    monkeypatch.setattr(training_config, "cpu_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})


@pytest.fixture
def small_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the test module's TEST_MODEL in place of the nano."""
    monkeypatch.setitem(MODELS, "nano", lambda: request.module.TEST_MODEL)
