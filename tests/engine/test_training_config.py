"""Settings that cannot be are refused by the name of the flag."""

from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.engine.optimisation import OptimisationConfig
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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "seed must be at least 0 and below 2"),
        ({"workers": -1}, "workers must be from 0 to 1024; got -1"),
        ({"workers": 10**12}, "workers must be from 0 to 1024"),
        ({"save_minutes": 0.0}, "save_minutes must be above 0; got 0"),
        ({"save_minutes": float("nan")}, "save_minutes must be above 0; got nan"),
    ],
)
def test_where_and_how_a_run_executes_is_within_bounds(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        RunConfig(out=Path("run"), **settings)


def test_no_setting_is_nan_or_infinity_however_deep_it_lies() -> None:
    run = RunConfig(out=Path("run"), save_minutes=float("inf"))
    with pytest.raises(ConvMAEError, match="save_minutes must be a finite number; got inf"):
        ValidatedConfig(data=Path("photos"), run=run)
    optimisation = OptimisationConfig(warmup_epochs=float("nan"))
    with pytest.raises(ConvMAEError, match="warmup_epochs must be a finite number; got nan"):
        ValidatedConfig(data=Path("photos"), run=RunConfig(out=Path("run")), optimisation=optimisation)
