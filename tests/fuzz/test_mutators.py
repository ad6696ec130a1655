"""Changed files are still files of their kind on the outside, and the same dice change them the same way."""

import io
import json
import random
import tarfile

import onnx
import pytest
from google.protobuf.message import DecodeError

from tests.fuzz.archives import mutate_tar
from tests.fuzz.bundles import graph_seeds
from tests.fuzz.chunks import mutate_chunks
from tests.fuzz.json_trees import mutate_json
from tests.fuzz.photos import photo_seeds
from tests.fuzz.protobuf_trees import mutate_protobuf
from tests.fuzz.training_files import shard_seeds
from tests.fuzz.videos import video_seeds

MOST = 8192


def reverse(data: bytes, most: int) -> bytes:
    """Stands for libFuzzer's changes."""
    return data[::-1][:most]


@pytest.mark.parametrize("name", ["colours.png", "animated.png"])
def test_a_changed_png_has_the_right_checksums(name: str) -> None:
    from convmae_deploy.media.images import ImageError, decode_image

    seed, decoded = photo_seeds()[name], 0
    for number in range(40):
        changed = mutate_chunks(seed, "png", MOST, random.Random(number), reverse)
        try:
            decode_image(changed)
            decoded += changed != seed
        except ImageError as error:
            assert "checksum" not in str(error)
    assert decoded


@pytest.mark.parametrize(("name", "layout"), [("h264.mp4", "boxes"), ("mpeg4.avi", "riff")])
def test_a_changed_video_has_chunks_to_its_last_byte(name: str, layout: str) -> None:
    seed = video_seeds()[name]
    for number in range(20):
        changed = mutate_chunks(seed, layout, MOST, random.Random(number), reverse)
        position = 0
        while position < len(changed):
            place = position if layout == "boxes" else position + 4
            size = int.from_bytes(changed[place : place + 4], "big" if layout == "boxes" else "little")
            position += size if layout == "boxes" else 8 + size + size % 2
        assert position == len(changed)


def test_a_changed_tar_still_has_members_and_is_never_longer_than_allowed() -> None:
    seed, readable = shard_seeds()["gnu.tar"], 0
    for number in range(20):
        changed = mutate_tar(seed, len(seed), random.Random(number), reverse)
        assert len(changed) <= len(seed)
        try:
            with tarfile.open(fileobj=io.BytesIO(changed)) as archive:
                readable += len(archive.getnames()) > 0
        except tarfile.ReadError:
            continue
    assert readable > 10


def test_changed_json_is_json_three_times_of_four_and_differs() -> None:
    seed = json.dumps({"a": [1, 2.5, "text", None, {"b": True}], "c": {"d": [[0]]}}).encode()
    kept = different = 0
    for number in range(200):
        changed = mutate_json(seed, MOST, random.Random(number), reverse)
        try:
            different += json.loads(changed) != json.loads(seed)
            kept += 1
        except ValueError:
            continue
    assert kept > 130 and different > 110


def test_a_changed_graph_is_often_a_message_still() -> None:
    seed, readable = graph_seeds()["areas.onnx"], 0
    for number in range(40):
        changed = mutate_protobuf(seed, MOST, random.Random(number), reverse)
        try:
            onnx.load_model_from_string(changed)
            readable += changed != seed
        except DecodeError:
            continue
    assert readable > 20


def test_bytes_that_are_no_json_and_files_without_chunks_are_changed_as_bytes() -> None:
    assert mutate_json(b"{nothing", MOST, random.Random(0), reverse) == b"gnihton{"
    assert mutate_chunks(b"abc", "boxes", MOST, random.Random(0), reverse) == b"cba"


def test_the_same_dice_change_a_file_in_the_same_way() -> None:
    seed = photo_seeds()["colours.png"]
    first, second = (mutate_chunks(seed, "png", MOST, random.Random(7), reverse) for _ in range(2))
    assert first == second
