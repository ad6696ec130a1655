"""The models that ship: small enough, verified, licensed, and as good as their cards say."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.accuracy import measure
from convmae_deploy.tasks import load_bundle, open_predictor

BUNDLES = Path(__file__).parents[1] / "serving" / "bundles"
SHIPPED = BUNDLES / "imagenette-nano"  # the first, which other tests take


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a model that ships must be."""

    file: str
    most_bytes: int
    outputs: frozenset[str]
    classes: int
    one_class: str
    licence: str  # in the manifest, and in the text beside it
    data: str  # pack of CONVMAE_DATA
    row: str  # of all classes
    column: str
    least: float  # percent
    near: float  # points: another CPU rounds near ties otherwise


CLASSIFIER = Expected(
    file="model.onnx",
    most_bytes=12_000_000,
    outputs=frozenset({"logits", "pooled", "e1", "e2", "e3", "e4"}),
    classes=10,
    one_class="church",
    licence="ImageNet",
    data="cls_imagenette160",
    row="all",
    column="top-1 %",
    least=91,
    near=0.16,  # two photos
)
SEGMENTER = Expected(
    file="model.fp16.onnx",
    most_bytes=7_000_000,
    outputs=frozenset({"logits"}),
    classes=11,
    one_class="Pavement",
    licence="CC BY-NC 4.0",
    data="seg_camvid",
    row="mean",
    column="IoU %",
    least=60,
    near=0.05,
)
MODELS = {"imagenette-nano": CLASSIFIER, "street-nano": SEGMENTER}


def test_each_is_held_here() -> None:
    assert sorted(path.name for path in BUNDLES.iterdir()) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_small_verified_and_carries_its_licence(name: str) -> None:
    folder, expected = BUNDLES / name, MODELS[name]
    manifest = load_bundle(folder).manifest
    assert list(manifest.files) == [expected.file]
    assert (folder / expected.file).stat().st_size <= expected.most_bytes
    numerics = manifest.files[expected.file].numerics
    assert numerics is not None and numerics.passed
    assert set(numerics.outputs) == expected.outputs
    assert manifest.licence.file == "LICENSE-WEIGHTS" and expected.licence in manifest.licence.name
    terms = (folder / "LICENSE-WEIGHTS").read_text(encoding="utf-8")
    assert expected.licence in terms and "non-commercial" in terms
    assert len(manifest.classes) == expected.classes and expected.one_class in manifest.classes


@pytest.mark.skipif("CONVMAE_DATA" not in os.environ, reason="CONVMAE_DATA does not name a folder with the data packs")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_its_accuracy_on_the_validation_photos_is_that_of_its_card(name: str) -> None:
    folder, expected = BUNDLES / name, MODELS[name]
    accuracy = measure(open_predictor(folder), Path(os.environ["CONVMAE_DATA"]) / expected.data, "val")
    total = accuracy.by_class[expected.row]
    found = total[expected.column]
    assert found >= expected.least
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    place = list(total).index(expected.column)
    (cells,) = re.findall(rf"^\| {expected.row} \|(.*)\|$", card, re.MULTILINE)
    assert found == pytest.approx(float(cells.split("|")[place]), abs=expected.near)
