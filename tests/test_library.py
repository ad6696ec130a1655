"""The library as a user types it."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from convmae_deploy import ConvMAEError, load
from tests.bundle_factory import make_bundle, make_detection_bundle, make_segmentation_bundle


def test_a_model_takes_a_path_bytes_an_image_or_a_list(tmp_path: Path) -> None:
    model = load(str(make_bundle(tmp_path / "bundle")), device="cpu")
    image = Image.new("RGB", (90, 70), (200, 30, 60))
    image.save(tmp_path / "a.png")
    content = io.BytesIO()
    image.save(content, "PNG")
    first = model(tmp_path / "a.png", top_k=2)
    assert len(first) == 2 and first[0].score >= first[1].score
    assert model([str(tmp_path / "a.png"), content.getvalue(), image], top_k=2) == [first] * 3


def test_what_a_model_gives_is_its_task_s(tmp_path: Path) -> None:
    image = Image.new("RGB", (192, 64), (210, 200, 190))
    objects = load(make_detection_bundle(tmp_path / "detector"), device="cpu")(image, threshold=0.3)
    assert [item.label for item in objects] == ["dog", "cat"]
    labels = load(make_segmentation_bundle(tmp_path / "segmenter"), device="cpu")(image).labels
    assert labels.shape == (64, 192)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_k": 0}, "top_k must be at least 1; got 0"),
        (
            {"threshold": 0.5},
            "threshold says nothing to a classification model, which takes top_k, function_to_apply, levels",
        ),
        ({"topk": 3}, "expected options among top_k"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path: Path, options: dict[str, float], sentence: str) -> None:
    model = load(make_bundle(tmp_path), device="cpu")
    with pytest.raises(ConvMAEError, match=sentence):
        model(Image.new("RGB", (8, 8)), **options)


def test_importing_the_library_imports_nothing_heavy() -> None:
    code = "import sys, convmae_deploy; sys.exit(bool({'numpy', 'onnxruntime', 'PIL', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
