"""What tests of the training engine share."""

import pytest

from convmae_deploy.engine import training_config


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks this machine's CPU whether it has instructions for bf16."""
    monkeypatch.setattr(training_config, "cpu_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
