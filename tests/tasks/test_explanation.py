"""What cells add to a logit: sums, a reference by another way, and the pictures of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.runtimes import RuntimeName, RuntimeOptions
from convmae_deploy.bundle.graphs.head import Norm, PooledHead
from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import PredictOptions
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.explanation import Explanation, contributions, find_class, seen_box
from convmae_deploy.tasks.explanation_drawing import AGAINST, FOR, draw_explanation
from convmae_deploy.tasks.preprocess import cropped_views
from tests.bundle.changed_graphs import with_token_pooling
from tests.bundle_factory import make_bundle, open_as
from tests.media.photo_files import photo
from tests.test_shipped_bundle import SHIPPED

RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")


def opened(bundle: Path, runtime: RuntimeName = "onnxruntime") -> Classifier:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    return open_as(Classifier, bundle, device="cpu", options=RuntimeOptions(runtime=runtime))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("which", ["tiny", "shipped"])
def test_contributions_and_bias_sum_to_the_logit_that_the_runtime_gave(
    which: str, runtime: RuntimeName, tmp_path: Path
) -> None:
    classifier = opened(SHIPPED if which == "shipped" else make_bundle(tmp_path / "tiny"), runtime)
    picture = photo(300, 200, seed=3)
    logits = classifier.run(classifier.preprocess(picture)[None], ("logits",))["logits"][0]
    found = classifier(picture, explain=classifier.manifest.classes)
    assert [each.label for each in found] == list(classifier.manifest.classes)
    largest = float(np.abs(logits).max())
    for index, each in enumerate(found):
        assert each.index == index and each.contributions.dtype == np.float32
        assert each.contributions.shape == classifier.manifest.outputs["e3"].shape[1:]
        assert each.logit == pytest.approx(logits[index], abs=1e-6 * largest)
        assert each.contributions.sum(dtype=np.float64) + each.bias == pytest.approx(each.logit, abs=1e-9)
        assert abs(each.difference) <= 1e-6 * largest and each.note is None


@pytest.mark.slow
def test_without_a_class_the_largest_logit_is_explained_of_each_photo() -> None:
    classifier = opened(SHIPPED)
    pictures = [photo(200, 200, seed=seed) for seed in range(3)]
    best = [found[0].label for found in classifier(pictures, top_k=1)]
    explained = classifier(pictures, explain=())
    assert [[each.label for each in found] for found in explained] == [[label] for label in best]


def head(norm: bool, seed: int = 0) -> PooledHead:
    random = np.random.default_rng(seed)
    scale, shift, weight, bias = (random.standard_normal(shape) for shape in (6, 6, (4, 6), 4))
    return PooledHead(Norm(scale, shift, 1e-6) if norm else None, weight, bias)


@pytest.mark.parametrize("norm", [False, True])
def test_contributions_are_cells_times_the_gradient_with_the_deviation_held(norm: bool) -> None:
    """A reference by another way: the logit written out in torch, its gradient, and its value without cells."""
    cells = np.random.default_rng(1).standard_normal((6, 3, 5)).astype(np.float32)
    made = head(norm)
    maps, biases = contributions(cells, made, [2, 0])
    weight, bias = torch.tensor(made.weight), torch.tensor(made.bias)

    def logit(cells_dhw: torch.Tensor, index: int, deviation: torch.Tensor) -> torch.Tensor:
        hidden = cells_dhw.mean(dim=(1, 2))
        if made.norm is not None:
            scale, shift = torch.tensor(made.norm.scale), torch.tensor(made.norm.shift)
            hidden = (hidden - hidden.mean()) / deviation * scale + shift
        return (weight[index] * hidden).sum() + bias[index]

    leaf = torch.tensor(cells, dtype=torch.float64, requires_grad=True)
    deviation = torch.sqrt(leaf.mean(dim=(1, 2)).var(correction=0) + 1e-6).detach()
    for place, index in enumerate((2, 0)):
        value = logit(leaf, index, deviation)
        (gradient,) = torch.autograd.grad(value, leaf)
        np.testing.assert_allclose(maps[place], (gradient * leaf).sum(dim=0).detach().numpy(), atol=1e-12)
        assert biases[place] == pytest.approx(logit(torch.zeros_like(leaf), index, deviation).item())
        if made.norm is not None:
            layer_norm = torch.nn.functional.layer_norm(
                leaf.mean(dim=(1, 2)), (6,), torch.tensor(made.norm.scale), torch.tensor(made.norm.shift), eps=1e-6
            )
            whole = (weight[index] @ layer_norm + bias[index]).item()
            assert maps[place].sum() + biases[place] == pytest.approx(whole)


def outputs_of(classifier: Classifier) -> dict[str, NDArray[Any]]:
    found = classifier.run(classifier.preprocess(photo())[None], ("logits", "e3"))
    return {name: values[0] for name, values in found.items()}


def test_a_head_of_fewer_digits_is_said_and_its_logit_is_kept(tmp_path: Path) -> None:
    classifier = opened(make_bundle(tmp_path / "tiny"))
    outputs = outputs_of(classifier)
    largest = max(1.0, float(np.abs(outputs["logits"]).max()))
    (found,) = classifier.explainer.explain(outputs | {"logits": outputs["logits"] + np.float32(0.01 * largest)}, [1])
    assert found.note is not None and "computes the head with fewer digits" in found.note
    assert found.difference == pytest.approx(0.01 * largest, rel=1e-3)
    assert found.of_cells + found.bias == pytest.approx(found.logit)
    assert found.fields()["note"] == found.note


@pytest.mark.parametrize("wrong", [5.0, float("nan")])
def test_a_logit_that_the_weights_do_not_make_is_refused(wrong: float, tmp_path: Path) -> None:
    classifier = opened(make_bundle(tmp_path / "tiny"))
    outputs = outputs_of(classifier)
    largest = max(1.0, float(np.abs(outputs["logits"]).max()))
    with pytest.raises(ConvMAEError, match="does not compute what the weights of its first graph say"):
        classifier.explainer.explain(outputs | {"logits": outputs["logits"] + np.float32(wrong * largest)}, [1])


def test_a_model_that_pools_in_another_way_says_so_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = opened(with_token_pooling(tmp_path / "tiny"))
    monkeypatch.setattr(classifier, "run", None)
    with pytest.raises(ConvMAEError, match="of tiny, its head stands on Gather, not on the mean over all cells"):
        classifier(photo(), explain=("a",))


def test_classes_are_found_by_name_or_number() -> None:
    classes = ("a", "b", "2", "b")
    assert [find_class(classes, wanted) for wanted in ("a", "0", "2", "3")] == [0, 0, 2, 3]
    with pytest.raises(ConvMAEError, match="2 classes are called b; give the number of one of them: 1, 3"):
        find_class(classes, "b")
    for wanted in ("4", "-1", "c", "²", "", "9" * 5000):
        with pytest.raises(ConvMAEError, match=r"expected one of 4 classes \(a, b, 2, b\), or a number from 0; got"):
            find_class(classes, wanted)


def test_an_unknown_class_is_refused_before_anything_runs(tmp_path: Path) -> None:
    classifier = opened(make_bundle(tmp_path / "tiny"))
    with pytest.raises(ConvMAEError, match="expected one of 3 classes"):
        classifier.check_options(PredictOptions(explain=("a", "zebra")))


SPEC = Preprocessing(resize=(80, 80), crop=(64, 64))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (333, 97), (80, 80)])
def test_the_box_is_what_the_model_sees(size: tuple[int, int]) -> None:
    """A photo that is bright inside of the box alone is bright all over after the crop, and dark one row beyond."""
    left, top, right, bottom = seen_box((size[1], size[0]), SPEC)
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    across, down = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    bright = ((across > left) & (across < right))[None, :] & ((down > top) & (down < bottom))[:, None]
    seen = cropped_views(Image.fromarray(np.uint8(255 * bright)).convert("RGB"), SPEC, 1)[0]
    assert seen[4:-4, 4:-4].min() == 255
    assert seen.mean() > 245


def explanation(values: list[list[float]]) -> Explanation:
    cells = np.array(values, dtype=np.float32)
    return Explanation(
        label="a ball", index=0, contributions=cells, bias=0.5, logit=float(cells.sum() + 0.5), difference=0.0
    )


def test_a_picture_has_cells_in_two_colours_inside_of_what_the_model_sees() -> None:
    grey = Image.new("RGB", (1000, 500), (128, 128, 128))
    picture = np.asarray(draw_explanation(grey, explanation([[2.0, 0.0], [0.0, -2.0]]), SPEC), dtype=int)
    assert picture.shape[1] == 1000 and picture.shape[0] > 500  # words below
    left, top, right, bottom = (round(edge) for edge in seen_box((500, 1000), SPEC))
    quarter = (right - left) // 4
    strongest, against = picture[top + quarter, left + quarter], picture[bottom - quarter, right - quarter]
    assert np.abs(strongest - (0.25 * 128 + 0.75 * np.array(FOR))).max() <= 1
    assert np.abs(against - (0.25 * 128 + 0.75 * np.array(AGAINST))).max() <= 1
    assert (picture[top + quarter, right - quarter] == 128).all()
    assert picture[250, left - 5].max() < 50 and picture[250, right + 5].max() < 50


@pytest.mark.parametrize("size", [(5000, 2500), (16, 16), (3, 200)])
def test_a_picture_is_neither_huge_nor_tiny(size: tuple[int, int]) -> None:
    drawn = draw_explanation(Image.new("RGB", size), explanation([[0.0, 0.0]]), SPEC)
    assert 400 <= max(drawn.size) <= 2200
