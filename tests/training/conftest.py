"""What tests of the training programs share."""

import pytest

from convmae_deploy.models.convmae import MODELS


@pytest.fixture
def small_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the test module's TEST_MODEL in place of the nano."""
    monkeypatch.setitem(MODELS, "nano", lambda: request.module.TEST_MODEL)
