"""Which bundles a server takes, and which model a request gets."""

from pathlib import Path

import pytest

from convmae_deploy.runtime.predictor import Classifier, Detector
from serving.errors import ApiError
from serving.models import choose, load_bundles, open_predictors
from serving.settings import Settings
from tests.bundle_factory import make_bundle


def test_bundles_keep_the_order_of_the_setting(bundle: Path, second_bundle: Path) -> None:
    for paths in ((bundle, second_bundle), (second_bundle, bundle)):
        loaded = load_bundles(Settings(bundle=paths))
        assert [found.path for found in loaded] == list(paths)


def test_a_bundle_is_read_and_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_bundle(tmp_path / "unproven", verified=False)
    open_predictors(Settings(bundle=(path,), device="cpu"))
    assert len(caplog.records) == 1


def test_a_model_of_another_task_is_not_found(predictors: dict[str, Classifier]) -> None:
    assert choose(predictors, None, Classifier) is predictors["tiny"]
    assert choose(predictors, "other", Classifier) is predictors["other"]
    with pytest.raises(ApiError) as refused:
        choose(predictors, "tiny", Detector)
    assert (refused.value.status, refused.value.code) == (404, "no_model_for_task")
