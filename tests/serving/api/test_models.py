"""Which bundles a server takes, what runs them, and which model a request gets."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convmae_deploy.backends.choice import Choice, Machine, choice_path
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.classification import Classifier
from serving.api.models import (
    batching_backends,
    close_predictors,
    describe_model,
    find_model,
    load_bundles,
    open_predictors,
)
from serving.errors import ApiError
from serving.model_metrics import model_labels
from serving.settings import Settings
from tests.bundle_factory import make_bundle
from tests.serving.fake_device import FakeDevice
from tests.waiting import wait_until


def test_bundles_keep_the_order_of_the_setting(bundle: Path, second_bundle: Path) -> None:
    for paths in ((bundle, second_bundle), (second_bundle, bundle)):
        loaded = load_bundles(Settings(bundle=paths))
        assert [found.path for found in loaded] == list(paths)


def test_a_bundle_is_read_and_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_bundle(tmp_path / "unproven", verified=False)
    open_predictors(Settings(bundle=(path,), device="cpu"))
    assert len(caplog.records) == 1


def test_a_model_of_another_task_is_not_found(predictors: dict[str, Classifier]) -> None:
    assert find_model(predictors, None, "classification") is predictors["tiny"]
    assert find_model(predictors, "other", "classification") is predictors["other"]
    with pytest.raises(ApiError) as refused:
        find_model(predictors, "tiny", "detection")
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


def on_fake_devices(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> list[FakeDevice]:
    """Has models start on fake devices; the one called `fails` does not."""
    devices: list[FakeDevice] = []

    def start(bundle: Bundle, **_: Any) -> FakeDevice:
        devices.append(FakeDevice(bundle.manifest))
        devices[-1].lost = bundle.manifest.name == fails
        return devices[-1]

    monkeypatch.setattr("serving.api.models.start_backend", start)
    return devices


def test_a_model_on_a_device_runs_in_batches_of_at_most_the_setting(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = on_fake_devices(monkeypatch)
    predictors = open_predictors(Settings(bundle=(bundle,), max_batch=5))
    assert batching_backends(predictors)["tiny"].sizes == (1, 2, 4)
    assert max(len(batch) for batch in devices[0].batches) == 4
    assert close_predictors(predictors, 5.0)


def test_a_model_that_does_not_start_ends_the_threads_of_those_before_it(
    bundle: Path, second_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_fake_devices(monkeypatch, fails="other")
    with pytest.raises(ConvMAEError, match=r"the model other cannot run a batch of 1 in fake \(the device fell off"):
        open_predictors(Settings(bundle=(bundle, second_bundle)))
    wait_until(lambda: not any(thread.name.startswith("batches-") for thread in threading.enumerate()))


def test_a_model_on_the_cpu_has_no_batches_whatever_the_setting(bundle: Path) -> None:
    assert batching_backends(open_predictors(Settings(bundle=(bundle,), device="cpu", max_batch=4))) == {}


def test_auto_follows_the_choice_beside_each_bundle_and_takes_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    chosen, other = make_bundle(tmp_path / "chosen", name="chosen"), make_bundle(tmp_path / "other", name="other")
    choice = Choice(
        goal="latency",
        device="cpu",
        runtime="openvino",
        file="model.onnx",
        file_sha256=load_bundle(chosen).manifest.files["model.onnx"].sha256,
        machine=Machine.this(),
        figures="1 ms",
        versions={},
    )
    choice_path(chosen).write_text(choice.model_dump_json())
    predictors = open_predictors(Settings(bundle=(chosen, other), runtime="auto", threads=2))
    assert [each.backend.name for each in predictors.values()] == ["openvino fp32", "onnxruntime"]
    assert [model_labels(each)["file"] for each in predictors.values()] == ["model.onnx", "model.onnx"]
    with pytest.raises(ConvMAEError, match="leave out file model.onnx"):
        open_predictors(Settings(bundle=(chosen,), runtime="auto", file="model.onnx"))


def test_the_graph_that_was_chosen_is_the_one_that_is_described(predictors: dict[str, Classifier]) -> None:
    tiny = predictors["tiny"]
    file = tiny.manifest.files["model.onnx"]
    files = {"model.onnx": file, "model.fp16.onnx": file.model_copy(update={"precision": "fp16"})}
    other = Classifier.__new__(Classifier)
    other.manifest, other.backend = tiny.manifest.model_copy(update={"files": files}), tiny.backend
    for chosen, name, precision in (
        (None, "model.onnx", "fp32"),
        ("model.fp16.onnx", "model.fp16.onnx", "fp16"),
        ("tiny.engine", "model.onnx", "fp32"),
    ):
        described = describe_model({"tiny": other}, other, chosen)["file"]
        assert (described["name"], described["precision"]) == (name, precision)


def test_a_bundle_gets_another_name(bundle: Path, second_bundle: Path) -> None:
    settings = Settings.model_validate({"bundle": f"first={bundle}:second={bundle}:{second_bundle}", "device": "cpu"})
    assert [found.manifest.name for found in load_bundles(settings)] == ["first", "second", "other"]
    predictors = open_predictors(settings)
    assert predictors["second"].manifest.name == "second" and list(predictors) == ["first", "second", "other"]


def test_two_of_one_name_are_refused_with_what_to_do(bundle: Path) -> None:
    with pytest.raises(ConvMAEError, match="both called tiny; .*CONVMAE_BUNDLE=other="):
        load_bundles(Settings.model_validate({"bundle": f"{bundle}:{bundle}"}))
