from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle, open_predictor
from convmae_deploy.tasks.base import ModelOutputError, PredictOptions, Predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.video import VideoClassifier
from tests.bundle_factory import (
    features_of,
    make_bundle,
    make_detection_bundle,
    make_segmentation_bundle,
    make_video_bundle,
    open_as,
)
from tests.media.photo_files import encode, photo

LEVELS = ("pooled", "e1", "e2", "e3", "e4")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), classes=("a", "b", "c", "d", "e", "f"), max_batch=4)


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Classifier:
    return open_as(Classifier, bundle, device="cpu", threads=1)


def batch_of(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, 64, 64), dtype=np.float32)


class RecordingBackend:
    """Answers with what it is told to and remembers the sizes of its batches."""

    name, providers = "recording", ("test",)

    def __init__(self, answer: dict[str, Any] | None = None) -> None:
        self.answer = answer
        self.sizes: list[int] = []

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        self.sizes.append(len(image))
        if self.answer is not None:
            return self.answer
        return {name: image.reshape(len(image), -1)[:, :8].copy() for name in outputs}


def test_levels_are_all_outputs_but_the_logits(predictor: Classifier) -> None:
    assert predictor.levels == LEVELS


def test_a_run_equals_onnxruntime_itself(predictor: Classifier, bundle: Path) -> None:
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    batch = batch_of(3)
    results = predictor.run(batch, ["logits", *LEVELS])
    assert list(results) == ["logits", *LEVELS]
    for name, values in results.items():
        np.testing.assert_allclose(values, session.run([name], {"image": batch})[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_a_batch_of_any_size_gives_what_single_images_give(predictor: Classifier, count: int) -> None:
    batch = batch_of(count)
    together = predictor.run(batch, ["e2", "pooled"])
    for index in range(count):
        alone = predictor.run(batch[index : index + 1], ["e2", "pooled"])
        for name, values in alone.items():
            np.testing.assert_allclose(together[name][index], values[0], rtol=1e-5, atol=1e-6)


def test_no_chunk_exceeds_the_largest_batch(bundle: Path) -> None:
    backend = RecordingBackend()
    results = Classifier(load_bundle(bundle), backend).run(batch_of(10), ["pooled"])
    assert backend.sizes == [4, 4, 2]
    assert np.array_equal(results["pooled"], batch_of(10).reshape(10, -1)[:, :8])


def test_no_chunk_falls_short_of_the_smallest_batch(tmp_path: Path) -> None:
    fixed = load_bundle(
        make_bundle(tmp_path, input={"name": "image", "shape": [3, 64, 64], "min_batch": 4, "max_batch": 4})
    )
    backend = RecordingBackend()
    results = Classifier(fixed, backend).run(batch_of(5), ["pooled"])
    assert backend.sizes == [4, 4]
    assert np.array_equal(results["pooled"], batch_of(5).reshape(5, -1)[:, :8])


@pytest.mark.parametrize(
    "batch",
    [
        batch_of(1)[0],
        batch_of(1)[:0],
        batch_of(1)[:, :, :32],
        batch_of(1).astype(np.float64),
        np.full((1, 3, 64, 64), np.nan, dtype=np.float32),
        np.full((1, 3, 64, 64), np.inf, dtype=np.float32),
    ],
)
def test_a_batch_that_the_graph_does_not_take_is_refused(predictor: Classifier, batch: NDArray[Any]) -> None:
    with pytest.raises(ConvMAEError, match="a batch must"):
        predictor.run(batch, ["logits"])


def test_outputs_that_do_not_exist_are_refused(predictor: Classifier) -> None:
    for outputs in (["e9"], []):
        with pytest.raises(ConvMAEError, match="outputs of tiny are logits, pooled, e1"):
            predictor.run(batch_of(1), outputs)
    with pytest.raises(ConvMAEError, match="are pooled, e1, e2, e3, e4; got logits"):
        features_of(predictor, [photo()], ["logits"])


@pytest.mark.parametrize(
    "values", [np.zeros((1, 9), dtype=np.float32), np.full((1, 8), np.nan, dtype=np.float32)], ids=["shape", "nan"]
)
def test_a_graph_that_answers_nonsense_is_not_blamed_on_the_input(bundle: Path, values: NDArray[np.float32]) -> None:
    predictor = Classifier(load_bundle(bundle), RecordingBackend({"pooled": values}))
    with pytest.raises(ModelOutputError, match="'pooled'"):
        predictor.run(batch_of(1), ["pooled"])


def test_photos_are_classified_in_order_best_class_first(predictor: Classifier) -> None:
    photos = [photo(seed=seed) for seed in range(6)]
    found = predictor(photos, top_k=3)
    logits = predictor.run(np.stack([predictor.preprocess(image) for image in photos]), ["logits"])["logits"]
    assert [predictions[0].label for predictions in found] == ["abcdef"[index] for index in logits.argmax(1)]
    for predictions in found:
        values = [prediction.score for prediction in predictions]
        assert len(values) == 3 and values == sorted(values, reverse=True)
    assert sum(prediction.score for prediction in predictor(photos[:1], top_k=99)[0]) == pytest.approx(1)
    assert predictor([photo()], function_to_apply="none")[0][0].score == pytest.approx(float(logits[0].max()), rel=1e-5)
    assert predictor([]) == []


def test_less_than_one_class_is_refused(predictor: Classifier) -> None:
    with pytest.raises(ConvMAEError, match="top_k must be at least 1; got 0"):
        predictor([photo()], top_k=0)


def test_a_bundle_of_another_task_does_not_classify(tmp_path: Path) -> None:
    other = make_video_bundle(tmp_path)
    with pytest.raises(ConvMAEError, match="motion is a video-classification model; give a classification bundle"):
        open_as(Classifier, other, device="cpu")


def test_what_a_bundle_is_opened_with_follows_from_its_task(tmp_path: Path) -> None:
    kinds: dict[str, type[Predictor]] = {
        "classification": Classifier,
        "detection": Detector,
        "segmentation": Segmenter,
        "video-classification": VideoClassifier,
    }
    makers: list[Callable[[Path], Path]] = [
        make_bundle,
        make_detection_bundle,
        make_segmentation_bundle,
        make_video_bundle,
    ]
    for (task, kind), make in zip(kinds.items(), makers, strict=True):
        predictor = open_predictor(make(tmp_path / task), device="cpu", threads=1)
        assert type(predictor) is kind and predictor.manifest.task == task


def test_an_output_of_another_type_is_not_blamed_on_the_input(bundle: Path) -> None:
    predictor = Classifier(load_bundle(bundle), RecordingBackend({"pooled": np.zeros((1, 8))}))
    with pytest.raises(ModelOutputError, match="'pooled' must be float32, got float64"):
        predictor.run(batch_of(1), ["pooled"])


def test_features_of_many_photos_have_one_row_each(predictor: Classifier) -> None:
    photos = [photo(seed=seed) for seed in range(6)]
    features = features_of(predictor, photos, LEVELS)
    shapes = {level: values.shape[1:] for level, values in features.items()}
    assert shapes == {"pooled": (8,), "e1": (4, 16, 16), "e2": (6, 8, 8), "e3": (8, 4, 4), "e4": (8, 2, 2)}
    for index, image in enumerate(photos):
        np.testing.assert_allclose(
            features["e3"][index], features_of(predictor, [image], ["e3"])["e3"][0], rtol=1e-5, atol=1e-5
        )


def test_a_classifier_gives_features_in_place_of_classes_where_levels_are_asked_for(predictor: Classifier) -> None:
    found, expected = predictor(photo(), levels=("e3", "pooled")), features_of(predictor, [photo()], ("e3", "pooled"))
    assert list(found) == ["e3", "pooled"]
    assert all(np.array_equal(values, expected[level][0]) for level, values in found.items())
    with pytest.raises(ConvMAEError, match="are pooled, e1, e2, e3, e4; got e9"):
        predictor(photo(), levels=("e9",))


def test_what_is_prepared_is_run_by_whoever_is_given_and_interpreted_file_by_file(predictor: Classifier) -> None:
    photos, batches = [photo(seed=seed) for seed in range(3)], []

    def run(batch: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        batches.append((batch.shape, tuple(outputs)))
        return predictor.run(batch, outputs)

    prepared = [predictor.prepare(image) for image in photos]
    assert [each.size for each in prepared] == [(image.height, image.width) for image in photos]
    found = predictor.interpret(prepared, PredictOptions(top_k=2), run)
    assert found == predictor(photos, top_k=2) and batches == [((3, 3, 64, 64), ("logits",))]


def test_threads_share_one_predictor(predictor: Classifier) -> None:
    photos = [photo(seed=seed) for seed in range(12)]
    expected = [predictor([image]) for image in photos]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda image: predictor([image]), photos)) == expected


def test_a_large_photo_is_halved_for_classes_and_features_and_refused_for_what_is_in_pixels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = PredictOptions(max_pixels=96 * 64)
    large = encode(photo(192, 128), "JPEG")
    classifier = open_predictor(make_bundle(tmp_path / "classes"), device="cpu")
    for _ in range(2):
        assert classifier.predict(large, limits)
    assert len(caplog.records) == 1 and "the first is one of 192 x 128" in caplog.text
    for make in (make_detection_bundle, make_segmentation_bundle):
        predictor = open_predictor(make(tmp_path / make.__name__), device="cpu")
        with pytest.raises(ConvMAEError, match="at most 6144 are accepted"):
            predictor.predict(large, limits)
