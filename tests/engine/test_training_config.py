"""Settings that cannot be are refused by the name of the flag."""

from pathlib import Path

import pytest

from convmae_deploy.engine.training_config import RunConfig, ValidatedConfig, check_at_least
from convmae_deploy.errors import ConvMAEError


def test_no_validation_at_all_is_refused() -> None:
    ValidatedConfig(data=Path("photos"), run=RunConfig(out=Path("run")), validation_epochs=1)
    with pytest.raises(ConvMAEError, match="validation_epochs must be at least 1; got 0"):
        ValidatedConfig(data=Path("photos"), run=RunConfig(out=Path("run")), validation_epochs=0)


def test_numbers_that_are_not_given_are_never_too_small() -> None:
    check_at_least(1, stride=None, train_images=1)
    with pytest.raises(ConvMAEError, match="stride must be at least 1; got 0"):
        check_at_least(1, train_images=None, stride=0)
