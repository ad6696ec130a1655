"""What searches found once, in the shortest form; the suite tries each for ever, without Atheris."""

import base64
import json
import zlib
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


def unpacked(text: str) -> bytes:
    """Of a file that was compressed and written in base 85."""
    return zlib.decompress(base64.b85decode(text))


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
        what="a largest difference of infinity was taken, and written as none",
        seed="photos.json",
        changes={("files", "model.onnx", "numerics", "outputs", "e4", "max_abs"): float("inf")},
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
VIDEOS = (
    PastFind(
        target="video",
        what="836 MiB for an MP4 of 449 bytes that says it holds 67 million samples",
        data=unpacked(
            "c-"
            "muNV9?D?Ni1Ptl<WP=Km;f$O3VgQoT(`gzCvzJ5q6cCd1)YpFz&75l47VH21X!0m0MuQFf4#XaY;!rlFyjo;;8CCa!"
            "f!h0}P2|Br%vC5Ul`|tAfhiWP#AzfOtO;=K`@vaY=GMl3oS?4wM)B"
        ),
    ),
    PastFind(
        target="video",
        what="times that descend: a rate below 0",
        data=unpacked(
            "c-nLG31ehrU|`?`Vg?}wh8+wLz{J3npXZxelIW6HlE?uR;9%fLDJ@DY$;{7Vu-"
            "~^M@O7))4hGip%#@N01_uwQF1C!+%=C;B1_uYI0B>1lN@{)z&<vo~R0fBNEQmN~T2W$dDp>5mvA+;89<bWv{FKz>%o"
            "GNg2@LG1c_6VOCI()g#IiIa6FoyCJwpQ{29C7MoYdmXDxk3)0#L;uZyW{^r=ffyWHtj!3xkA!pv;ODbD0^{co+%{0u"
            "CJ7$A56yUn@2y9|?vB2@4xrYvh}Ke_h~V=U`)+;pzAwbAMsufz}NP;s=|)vN426_-"
            "|<AHSt#JoOr=NDB%D*Gb;~|_JcoC`Iprl5~L0`<O03=gonjK(Y1h|Nv^*@WI?sDE;IjPHikbEOb-"
            "%d7#lR%m{&;f3;tl|KiKezjmbiwv7s|8{tp|IiUhyoi!W6%F*gk4xu&FT_4PS%;>79y|I*yt+~WU#HUfhG|7T8|IC1"
            "*_A3)z+1N!U?1A_)M-"
            "db27KHJ62c!Y;J!XWOzq2?Bb%!RRx4UgCu*GT9mBsv~qFuAan;Xpw{f@aGUIkwr~C1g0F*%)gi^aB!D9b0~LIEHyDX"
            "#7VvqW&&pLpB@Zks2Q62?hcWT15}oa8%hI2x@$DW($v9j|B6F1n$O$0yc&v5_}61Y}_Bn*t0R8kl=XW#Kxo=S^q(TV"
            "?u&0`{Ii)3yTvD)My3Hx@v0w9|V4a$^YlU<iC0_^#JId>;D00*4ru"
        ),
    ),
    PastFind(
        target="video",
        what="struct.error: a table's name at the end of the file",
        data=unpacked("c-muNVBknAN=;>8V6e?iNi1O?0hAP#=7AXi;JpP`"),
    ),
    PastFind(
        target="video",
        what="609 MiB for a run of 16 million frames without bytes, which ends where the media begin",
        data=unpacked(
            "c-oCqKTE?v6n|-"
            "Jap+(%gNR~;DlV;UD566_ap@p9sUQlby~Kv*nv%N&b;{tNgCE3A1YI0lIthLOKY`z(zPq;eEVlYc?!Di8ckk~V0O$_"
            "CY`e^-00{tAE&(K`sqaSsa73d9fghColuVP~kcMCzCKAR-"
            "Eb+i<qI|-e(tYw*N28=o#xiaZe?uByC~+-;C>brml<Pr9vV4Ph!N3x^#8!76x>D65o-Ouh4s}}&3VKAPQ#FMg>Dd-Y"
            "U^_~RnK1B-e#cfBuX!kcFwTgw=Z&_@(bxtQv7{>U>Yptd&|J5R>zU06lQWCscps0Yknb2-p-Ruk;-"
            "5mzI(mE%**)FP_MB@5bnb58UAs={y9gimtf;<W7R=2;sc5G0jFu2xsPTY<;ti!4#yL|mLCoq3))8NgWQ%+1zJk|iWM"
            "7EU@j&uH&7*bKLc+y}kEt!Wpk;NOcm)Eh-"
            "S*T&dDmki>6Lr#i=d0dl82>ptkc0dOQxt3@hQFoG0O~fzAup~SMVYWdye;XTf;1q6?xYIp0%DP%Y(3`jxVMd`uzVic"
            "s>x1kD6-sqrUc|>f9k*Q(vF#Yxo7rx{7="
        ),
    ),
)
PAST_FINDS = MANIFESTS + GRAPHS_AND_ENGINES + ANNOTATIONS + VIDEOS
