"""Annotations, lists and label maps that somebody else made: they are data, within bounds, and lead nowhere else."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convmae_deploy.data.coco import read_coco_photo, read_coco_split
from convmae_deploy.data.coco_file import MAX_ANNOTATION_BYTES
from convmae_deploy.data.findings import Findings
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.data.segmentation_folder import read_segmentation_folder
from convmae_deploy.data.video_folder import find_training_videos, read_video_folder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.media.video_file import open_video
from tests.coco_folders import HEIGHT, WIDTH, annotation_file, edit_annotations, make_coco_folder, rectangle
from tests.hostile.bounds import MEGABYTE, Ending, bounded
from tests.media.photo_files import packed_zeros

pytestmark = pytest.mark.slow  # together

Content = dict[str, Any]
Change = Callable[[Content], Any]


def read_coco(root: str) -> list[str]:
    """All that training and evaluation read; gives the problems of photos, which are counted there."""
    split = read_coco_split(Path(root), "train")
    split.ground_truth()
    problems = missing(split.findings)
    for photo, objects in ((photo, split.objects[index]) for index, photo in enumerate(split.photos)):
        try:
            read_coco_photo(photo)
        except ConvMAEError as error:
            problems.append(str(error))
        else:
            for item in objects:
                assert item.mask(photo.height, photo.width).max() <= 1
    return problems


def missing(findings: Findings) -> list[str]:
    """What is named and is not there."""
    named = (finding.examples for kind, finding in findings.passed_over.items() if " that are not " in kind)
    return [f"{name} is not there" for examples in named for name in examples]


def read_segmentation(root: str) -> int:
    folder = read_segmentation_folder(Path(root), "train")
    return sum(int(folder.read(index)[1].size) for index in range(len(folder.photos)))


def read_videos(root: str) -> list[str]:
    """What a list names, and why each of it cannot be read."""
    folder = read_video_folder(Path(root), "train")
    problems = missing(folder.findings)
    assert find_training_videos(Path(root)) == folder.videos
    for video in folder.videos:
        try:
            with open_video(video):
                pass
        except ConvMAEError as error:
            problems.append(str(error))
    return problems


def read_photos(root: str) -> list[str]:
    """What is wrong with each photo of a folder with classes; a photo that can be read adds its size."""
    folder, found = read_photo_folder(Path(root), "train"), []
    for photo in (*folder.photos, *find_photos([Path(root)])):
        try:
            found.append(str(read_photo(photo).image.size))
        except ConvMAEError as error:
            found.append(str(error))
    return found


def within_bounds(read: Callable[[str], Any], root: Path) -> Ending:
    """Reads within bounds, and sees that nothing was started and nothing outside of the folder opened."""
    ending = bounded(read, str(root), memory=200 * MEGABYTE, processor_seconds=20)
    assert ending.how in ("returned", "refused"), ending
    assert not ending.started and not ending.connected
    assert ending.opened_outside(root) == []
    assert ending.sentence.isprintable() and len(ending.sentence) < 2000
    return ending


def first(part: str, **changes: Any) -> Change:
    """Changes the first image, category or annotation."""
    return lambda content: content[part][0].update(changes)


def masked(counts: Any, height: int = HEIGHT, width: int = WIDTH) -> Change:
    return first("annotations", segmentation={"size": [height, width], "counts": counts})


REFUSED: dict[str, Change] = {
    "a photo by an absolute path": first("images", file_name="/etc/passwd"),
    "a photo above its folder": first("images", file_name="../../annotations/instances_train.json"),
    "a photo above its folder, as Windows writes it": first("images", file_name="..\\..\\a.png"),
    "a photo on another machine": first("images", file_name="\\\\host\\share\\a.png"),
    "a photo whose name drives the terminal": first("images", file_name="\x1b]0;title\x07.png"),
    "a photo of no name": first("images", file_name=""),
    "a photo of 10^18 pixels": first("images", width=10**9, height=10**9),
    "an id of 400 digits": first("images", id=10**400),
    "runs that stop early": masked([10, 5]),
    "runs that go on": masked([10, 2**31]),
    "runs below zero": masked([-10, HEIGHT * WIDTH + 10]),
    "runs of thirty digits": masked([10**30]),
    "no runs": masked([]),
    "text runs that stop early": masked("5"),
    "text runs cut off": masked("ooooooo"),
    "text runs of sixty bits": masked("o" * 12 + "0"),
    "text runs in other letters": masked("\u732b\x1b[31m"),
    "millions of text runs": masked("1" * 4_000_000),
    "an outline round the world": first("annotations", segmentation=rectangle((0, 0, 900_000, 900_000))),
    "an outline of many turns": first("annotations", segmentation=[[0, 0, 9000, 9000] * 10_000]),
    "an outline beyond numbers": first("annotations", segmentation=[[0, 0, 1e300, 0, 0, 1e300]]),
    "a box beyond numbers": first("annotations", bbox=[0, 0, 1e300, 1e300]),
    "a box that is none": first("annotations", bbox=[float("nan")] * 4),
    "a class whose name drives the terminal": first("categories", name="\x1b[2J\nerror: forged"),
    "a class with a name of a megabyte": first("categories", name="a" * MEGABYTE),
    "a hundred thousand and one classes": lambda content: content["categories"].extend(
        {"id": 100 + number, "name": str(number)} for number in range(100_001)
    ),
    "a million errors": lambda content: content.update(annotations=[0] * 1_000_000),
    "a million errors in a polygon": first("annotations", segmentation=[["a"] * 1_000_000]),
    "a million errors in runs": masked(["a"] * 1_000_000),
    "photos that are numbers": lambda content: content.update(images=list(range(100_000))),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_annotations_that_lie_are_refused_at_the_start(tmp_path: Path, kind: str) -> None:
    root = make_coco_folder(tmp_path / "root")
    edit_annotations(root, "train", REFUSED[kind])
    ending = within_bounds(read_coco, root)
    assert ending.how == "refused" and "instances_train.json" in ending.sentence


TEXTS: dict[str, bytes] = {
    "nesting without end": b'{"images": ' + b"[" * 500_000,
    "objects without end": b'{"images": ' + b'{"a": ' * 500_000,
    "a string without end": b'{"images": "' + b"a" * MEGABYTE,
    "a number without end": b'{"images": ' + b"1" * MEGABYTE,
    "nothing": b"",
    "bytes that are no text": b"\xff\xfe\x00{" * 1000,
    "half of a surrogate pair": b'{"images": [{"id": 1, "file_name": "\\ud800.png", "width": 1, "height": 1}]}',
    "a list": b"[]",
    "not a number": b'{"images": NaN, "categories": Infinity, "annotations": -Infinity}',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_files_that_are_no_annotations_are_refused(tmp_path: Path, kind: str) -> None:
    root = make_coco_folder(tmp_path / "root")
    annotation_file(root, "train").write_bytes(TEXTS[kind])
    assert within_bounds(read_coco, root).how == "refused"


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a hole"])
def test_annotations_that_are_no_file_or_too_large_are_never_waited_for(tmp_path: Path, kind: str) -> None:
    root = make_coco_folder(tmp_path / "root")
    file = annotation_file(root, "train")
    file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as stream:
            stream.truncate(MAX_ANNOTATION_BYTES + 1)
    ending = within_bounds(read_coco, root)
    assert ending.how == "refused" and ending.grown < 16 * MEGABYTE


def test_masks_and_photos_of_other_sizes_than_they_claim_are_never_drawn(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path / "root")

    def claim(content: Content) -> None:
        content["images"][0].update(width=65_535, height=65_535)
        for annotation in content["annotations"]:
            annotation["segmentation"] = {"size": [65_535, 65_535], "counts": [65_535 * 65_535]}
            if annotation["image_id"] != content["images"][0]["id"]:
                annotation["segmentation"] = rectangle((1, 1, 20, 20))

    edit_annotations(root, "train", claim)
    ending = within_bounds(read_coco, root)
    assert ending.how == "returned" and ending.grown < 16 * MEGABYTE
    assert len(ending.value) == 1 and "must have the 65535 x 65535 pixels of its annotations" in ending.value[0]


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a hole", "a folder"])
def test_a_photo_that_is_no_file_is_one_unreadable_photo(tmp_path: Path, kind: str) -> None:
    root = make_coco_folder(tmp_path / "root")
    plant(root / "images" / "train" / "10.png", kind)
    ending = within_bounds(read_coco, root)
    assert ending.how == "returned" and len(ending.value) == 1


def plant(path: Path, kind: str) -> None:
    """Puts something that is no photo in the place of one."""
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 33)


def make_labelled_photo(root: Path, label_map: bytes) -> Path:
    """A photo of 3 x 2 pixels with a label map."""
    for folder in ("images", "labels"):
        (root / folder / "train").mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": ["sky", "road"]}))
    Image.new("RGB", (3, 2)).save(root / "images" / "train" / "a.png")
    (root / "labels" / "train" / "a.png").write_bytes(label_map)
    return root


def png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG that says what it likes."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    written = b"\x89PNG\r\n\x1a\n"
    for kind, content in (header, *chunks, (b"IDAT", data), (b"IEND", b"")):
        written += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return written


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\n%%EndComments\n\n"
    b'%ImageData: 3 2 8 1 0 1 1 "x"\n(touch pwned) system\nshowpage\n%%EOF\n'
)
BOMB = packed_zeros(50 * MEGABYTE)
LABEL_MAPS: dict[str, bytes] = {
    "PostScript": POSTSCRIPT,
    "a picture of 2^62 pixels": png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0" * 100)),
    "a picture of 100 million pixels": png(10_000, 10_000, packed_zeros(100_010_000)),
    "more pixels than it says": png(3, 2, BOMB),
    "a text of 50 MB": png(3, 2, zlib.compress(b"\0" * 8), *[(b"zTXt", b"a\0\0" + BOMB)] * 50),
    "a colour profile of 50 MB": png(3, 2, zlib.compress(b"\0" * 8), (b"iCCP", b"a\0\0" + BOMB)),
    "fewer pixels than it says": png(3, 2, zlib.compress(b"\0" * 2)),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/x"/></svg>',
    "nothing": b"",
}


@pytest.mark.parametrize("kind", LABEL_MAPS)
def test_a_label_map_runs_nothing_and_stays_within_the_limits_of_photos(tmp_path: Path, kind: str) -> None:
    root = make_labelled_photo(tmp_path / "root", LABEL_MAPS[kind])
    ending = within_bounds(read_segmentation, root)
    if ending.how == "returned":  # what is too much is left out
        assert ending.value == 6
    assert ending.grown < 32 * MEGABYTE
    assert not (root / "pwned").exists() and not Path("pwned").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a hole", "a folder"])
def test_a_label_map_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    root = make_labelled_photo(tmp_path / "root", png(3, 2, zlib.compress(b"\0" * 8)))
    plant(root / "labels" / "train" / "a.png", kind)
    ending = within_bounds(read_segmentation, root)
    assert ending.how == "refused" and ending.grown < 16 * MEGABYTE


LISTS: dict[str, str] = {
    "an absolute path": "a.mp4,0\n/etc/passwd,0\n",
    "a path above": "a.mp4,0\n../secret.mp4,0\n",
    "another machine": "a.mp4,0\n//127.0.0.1/share/a.mp4,0\n",
    "a label that makes ten billion classes": "a.mp4,9999999999\n",
    "a label of a megabyte": "a.mp4," + "9" * MEGABYTE + "\n",
    "a class that drives the terminal": "a.mp4,\x1b]0;title\x07\n",
    "a column of a megabyte": 'a.mp4,0\n"' + "a" * MEGABYTE + ",0\n",
    "a file name of a megabyte": "a" * MEGABYTE + ".mp4,0\n",
    "no end of blank lines": "\n" * MEGABYTE,
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_that_lie_are_refused_at_the_start(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.mp4").touch()
    (tmp_path / "secret.mp4").touch()
    (root / "train.csv").write_text(LISTS[kind])
    assert within_bounds(read_videos, root).how == "refused"


def test_protocols_of_ffmpeg_and_commands_in_a_list_are_names_of_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    names = ("concat:a.mp4|secret", "subfile,,start,0,end,0,,:a.mp4", "http://127.0.0.1:9/a.mp4", "pipe:0", "pipe:id")
    (root / "a.mp4").touch()
    (root / "train.csv").write_text("".join(f'"{name}",0\n' for name in ("a.mp4", *names)))
    ending = within_bounds(read_videos, root)
    assert ending.how == "returned" and len(ending.value) == len(names) + 1
    assert sum("is not there" in problem for problem in ending.value) == len(names)


def test_a_video_that_is_a_playlist_or_names_another_file_opens_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    secret = tmp_path / "secret.mp4"
    secret.touch()
    texts = (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile '{secret}'\n", "<MPD></MPD>")
    for number, text in enumerate(texts):
        (root / f"{number}.mp4").write_text(text)
    (root / "train.csv").write_text("".join(f"{number}.mp4,0\n" for number in range(len(texts))))
    ending = within_bounds(read_videos, root)
    assert ending.how == "returned" and len(ending.value) == len(texts)


def test_a_folder_of_classes_full_of_traps_is_read_past_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("one", "pipe:touch pwned", "$(touch pwned)", "-rf", "{0..9}"):
        (root / "train" / name).mkdir(parents=True)
        Image.new("RGB", (3, 2)).save(root / "train" / name / "a.png")
    os.mkfifo(root / "train" / "one" / "pipe.jpg")
    (root / "train" / "one" / "device.jpg").symlink_to("/dev/zero")
    (root / "train" / "one" / "nowhere.jpg").symlink_to("nowhere")
    (root / "train" / "one" / "itself").symlink_to(root)
    plant(root / "train" / "one" / "hole.jpg", "a hole")
    ending = within_bounds(read_photos, root)
    assert ending.how == "returned" and ending.grown < 32 * MEGABYTE
    assert ending.value.count("(3, 2)") == 2 * 5
    others = [problem for problem in ending.value if problem != "(3, 2)"]
    assert len(others) == 2 and all("at most" in problem for problem in others)
    assert not (root / "pwned").exists() and not Path("pwned").exists()


@pytest.mark.parametrize("content", [b"[" * 500_000, b"{" * 500_000, b'{"a": ' + b"1" * 10_000 + b"}", b"\xff", b"NaN"])
def test_a_classes_json_of_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    root = make_labelled_photo(tmp_path / "segmentation", png(3, 2, zlib.compress(b"\0" * 8)))
    (root / "train" / "one").mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(root / "train" / "one" / "a.png")
    (root / "classes.json").write_bytes(content)
    assert within_bounds(read_segmentation, root).how == "refused"
    assert within_bounds(read_photos, root).how == "refused"
