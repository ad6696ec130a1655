"""What searches found once, in the shortest form; the suite tries each for ever, without Atheris."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.targets import TARGETS


@dataclass(frozen=True, kw_only=True)
class PastFind:
    """An input that broke a promise: `data`, or a seed of the target with changed values.

    Attributes:
        target: its name.
        what: what happened.
        data: the input, where it is not a changed seed.
        seed: name of a seed that is JSON.
        changes: new values by their place in it, for instance ("outputs", "e1", "stride").
    """

    target: str
    what: str
    data: bytes = b""
    seed: str = ""
    changes: Mapping[tuple[str | int, ...], Any] = field(default_factory=dict)

    def input(self) -> bytes:
        """The input."""
        if not self.seed:
            return self.data
        tree = json.loads(TARGETS[self.target].seeds()[self.seed])
        for place, value in self.changes.items():
            node = tree
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value
        return json.dumps(tree).encode()


MANIFESTS = (
    PastFind(
        target="manifest",
        what="ZeroDivisionError while slots were counted",
        seed="videos.json",
        changes={("outputs", "e1", "stride"): 0},
    ),
    PastFind(
        target="manifest",
        what="OSError: a file name longer than the disk takes",
        seed="photos.json",
        changes={("licence", "file"): "x" * 300},
    ),
    PastFind(
        target="manifest",
        what="half a character, which UTF-8 cannot write, was taken for a name",
        seed="photos.json",
        changes={("licence", "name"): "\ud800"},
    ),
    PastFind(
        target="manifest",
        what="half a character was taken for the words of a report",
        seed="photos.json",
        changes={("files", "model.onnx", "numerics", "tolerance"): "\ud800"},
    ),
    PastFind(
        target="manifest",
        what="UnicodeEncodeError: half a character in a key",
        seed="photos.json",
        changes={("outputs", "e\ud800"): {"shape": [1]}},
    ),
    PastFind(
        target="manifest",
        what="NaN was taken for a mean",
        seed="photos.json",
        changes={("preprocessing", "mean"): [float("nan"), 0.4, 0.4]},
    ),
    PastFind(
        target="manifest",
        what="IndexError: an image without axes",
        seed="photos.json",
        changes={("input", "shape"): []},
    ),
    PastFind(
        target="manifest",
        what="ValidationError: logits of no classes",
        seed="photos.json",
        changes={("classes",): []},
    ),
)
GRAPHS_AND_ENGINES = (
    PastFind(target="graph", what="MemoryError: a name of gigabytes was believed", data=b"B\x06\n\x80\xff\xff\xff\x7f"),
    PastFind(
        target="graph",
        what="OverflowError: a name longer than any memory",
        data=b"B\r\n\xed\xd7\xff\xff\xff\xff\xce\xc6\x80\x01",
    ),
    PastFind(
        target="graph",
        what="OSError: a length that leads beyond every file",
        data=b"\0\0\0\0:\x80" + b"\xff" * 7 + b"\x7f",
    ),
    PastFind(
        target="engine",
        what="ValueError: the smallest of no GPUs",
        seed="portable.json",
        changes={("compute_capabilities",): []},
    ),
    PastFind(
        target="engine",
        what="ValueError: a digit that int() does not take",
        seed="portable.json",
        changes={("compute_capabilities",): ["8.²"]},
    ),
    PastFind(
        target="engine",
        what="NaN was taken for a number of seconds",
        seed="portable.json",
        changes={("build_seconds",): float("nan")},
    ),
)
ANNOTATIONS = (
    PastFind(
        target="coco",
        what="the process crashed: a polygon far outside its photo",
        seed="polygons.json",
        changes={("annotations", 0, "segmentation", 1, 4): 30064771072},
    ),
    PastFind(
        target="coco",
        what="OverflowError: a photo of 10**21 rows",
        seed="polygons.json",
        changes={("images", 0, "height"): 10**21},
    ),
    PastFind(
        target="coco",
        what="ValueError: run lengths as text that go on beyond the photo",
        seed="text.json",
        changes={("annotations", 0, "segmentation", "counts"): ":d1b1"},
    ),
    PastFind(
        target="coco",
        what="run lengths that end early were filled from memory",
        seed="numbers.json",
        changes={("annotations", 0, "segmentation", "counts"): []},
    ),
    PastFind(
        target="coco",
        what="a photo outside its folder",
        seed="polygons.json",
        changes={("images", 0, "file_name"): "/etc/passwd"},
    ),
    PastFind(
        target="coco",
        what="ValueError: a zero byte in a photo's name",
        seed="polygons.json",
        changes={("images", 0, "file_name"): "\0"},
    ),
)
PAST_FINDS = MANIFESTS + GRAPHS_AND_ENGINES + ANNOTATIONS
