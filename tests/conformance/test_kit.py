import io
import json
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from safetensors.numpy import load, save

from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.bundle.manifest import KIT_NAME
from convmae_deploy.conformance.kit import MOST_NUMBERS, read_kit, sampled
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle, make_detection_bundle, make_video_bundle, write_manifest
from tests.conformance.kits import with_kit

Members = dict[str, bytes]


def members_of(bundle: Path) -> Members:
    with ZipFile(bundle / KIT_NAME) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put_kit(bundle: Path, content: bytes) -> None:
    """Another kit, with the manifest that fits it."""
    (bundle / KIT_NAME).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    stored = {"sha256": sha256_of(bundle / KIT_NAME), "bytes": len(content)}
    write_manifest(bundle, manifest | {"conformance": stored})


def packed(members: Members) -> bytes:
    target = io.BytesIO()
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.mark.slow
def test_a_kit_holds_photos_right_inputs_and_outputs_and_the_steps_in_words(tmp_path: Path) -> None:
    bundle = with_kit(make_bundle(tmp_path / "tiny"))
    kit = read_kit(load_bundle(bundle))
    assert [item.photo.file for item in kit] == [
        "orientation.jpg", "cmyk.jpg", "transparency.png", "narrow.png", "large.png",
    ]  # fmt: skip
    assert all(item.input.shape == (3, 64, 64) and set(item.outputs) >= {"logits", "e4"} for item in kit)
    text = members_of(bundle)["README.md"].decode()
    assert "0.485, 0.456, 0.406" in text and "turn it clockwise by 90 degrees" in text
    assert (bundle / KIT_NAME).stat().st_size < 400_000
    again = members_of(with_kit(make_bundle(tmp_path / "again")))
    assert again == members_of(bundle)


def test_of_lists_a_kit_holds_scores_and_of_videos_there_is_none(tmp_path: Path) -> None:
    (item, *_) = read_kit(load_bundle(with_kit(make_detection_bundle(tmp_path / "boxes"))))
    assert list(item.outputs) == ["scores"]
    with pytest.raises(BundleError, match="holds no conformance.zip: it is for videos"):
        read_kit(load_bundle(with_kit(make_video_bundle(tmp_path / "motion"))))


def test_large_outputs_are_evenly_sampled() -> None:
    values = np.arange(3 * 5000).reshape(3, 5000)
    assert sampled(values).tolist() == [index * 15000 // MOST_NUMBERS for index in range(MOST_NUMBERS)]
    assert sampled(values[:, :9]).tolist() == values[:, :9].ravel().tolist()


def without(name: str) -> Callable[[Members], Members]:
    return lambda members: {key: content for key, content in members.items() if key != name}


def other_json(**fields: object) -> Callable[[Members], Members]:
    return lambda members: members | {"kit.json": json.dumps(json.loads(members["kit.json"]) | fields).encode()}


def infinite(members: Members) -> Members:
    tensors = load(members["tensors.safetensors"])
    tensors["inputs/cmyk"] = np.full_like(tensors["inputs/cmyk"], np.nan)
    return members | {"tensors.safetensors": save(tensors)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("photos/cmyk.jpg"), "lacks photos/cmyk.jpg"),
        (without("tensors.safetensors"), "lacks tensors.safetensors"),
        (other_json(photos=[{"file": "../../etc/passwd", "about": ""}]), "kit.json is not as it must be"),
        (other_json(photos=[]), "kit.json is not as it must be"),
        (infinite, r"inputs/cmyk must be float32 \(3, 64, 64\), finite"),
        (lambda members: members | {"tensors.safetensors": b"\xff" * 100}, "no conformance kit"),
        (lambda members: members | {"photos/cmyk.jpg": bytes(2**24 + 1)}, "has more than 16777216 bytes"),
    ],
)
def test_a_kit_that_is_not_as_stated_is_a_sentence(
    change: Callable[[Members], Members], words: str, tmp_path: Path
) -> None:
    bundle = with_kit(make_bundle(tmp_path / "tiny"))
    put_kit(bundle, packed(change(members_of(bundle))))
    with pytest.raises(BundleError, match=words):
        read_kit(load_bundle(bundle))


def test_a_kit_that_is_cut_off_or_was_changed_is_refused(tmp_path: Path) -> None:
    bundle = with_kit(make_bundle(tmp_path / "tiny"))
    content = (bundle / KIT_NAME).read_bytes()
    put_kit(bundle, content[:-500])
    with pytest.raises(BundleError, match="no conformance kit"):
        read_kit(load_bundle(bundle))
    (bundle / KIT_NAME).write_bytes(content[:-501] + b"x")
    with pytest.raises(BundleError, match="was changed"):
        load_bundle(bundle)
