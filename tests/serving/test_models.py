"""Which bundles a server takes, what runs them, and which model a request gets."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.errors import ConvMAEError
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


@pytest.mark.parametrize("hint", ["throughput", "latency"])
def test_with_openvino_requests_side_by_side_get_onnx_runtime_s_numbers(
    bundle: Path, predictors: dict[str, Classifier], hint: str
) -> None:
    pytest.importorskip("openvino")
    settings = Settings.model_validate({"bundle": (bundle,), "runtime": "openvino", "hint": hint, "threads": 2})
    predictor = open_predictors(settings)["tiny"]
    assert (predictor.backend.name, predictor.backend.providers) == ("openvino fp32", ("CPU",))
    batches = [
        np.random.default_rng(seed).standard_normal((1 + seed % 3, 3, 64, 64), dtype=np.float32) for seed in range(12)
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: predictor.run(batch, ["logits", "e2"]), batches))
    for batch, ours in zip(batches, found, strict=True):
        for name, values in predictors["tiny"].run(batch, ["logits", "e2"]).items():
            np.testing.assert_allclose(ours[name], values, rtol=1e-4, atol=1e-5)


def test_bf16_without_openvino_is_refused(bundle: Path) -> None:
    with pytest.raises(ConvMAEError, match="precision bf16 is for runtime openvino"):
        open_predictors(Settings(bundle=(bundle,), precision="bf16"))
