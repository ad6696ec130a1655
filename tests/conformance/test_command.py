"""The kit against programs written otherwise: torchvision is right, and four deliberate mistakes are named."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from convmae_deploy import cli
from convmae_deploy.conformance.judging import judge_inputs
from convmae_deploy.conformance.kit import KitItem, read_kit
from convmae_deploy.conformance.mistakes import Maker, Mistakes, every_mistake
from convmae_deploy.tasks import load_bundle, task_of
from tests.bundle_factory import make_bundle, make_detection_bundle, take_levels
from tests.conformance.kits import with_kit

# torchvision is here as another reader of files than Pillow, however long it stays one
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Client = Callable[[bytes], torch.Tensor]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_kit(make_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


def kit_of(bundle: Path) -> list[KitItem]:
    return read_kit(load_bundle(bundle))


def conform(bundle: Path, *arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["conform", str(bundle), *map(str, arguments)])
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def client(
    content: bytes,
    *,
    orientation: bool = True,
    antialias: bool = True,
    side: int = 73,
    bgr: bool = False,
    std: list[float] = STD,
) -> torch.Tensor:
    """What a program with torchvision gives to a graph of 64 x 64 pixels; none of it is this project's code."""
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image = decode_image(data, mode=ImageReadMode.RGB, apply_exif_orientation=orientation)
    image = F.resize(image, [side], interpolation=InterpolationMode.BICUBIC, antialias=antialias)
    image = F.center_crop(image, [64, 64]) / 255
    made: torch.Tensor = F.normalize(image.flip(0) if bgr else image, MEAN, std)
    return made


def written(bundle: Path, path: Path, program: Callable[..., torch.Tensor], **mistakes: Any) -> Path:
    photos = {item.photo.name: item.photo.content for item in kit_of(bundle)}
    arrays: dict[str, Any] = {f"inputs/{name}": program(photo, **mistakes).numpy() for name, photo in photos.items()}
    np.savez(path, **arrays)
    return path


def test_another_program_that_does_as_the_steps_say_conforms(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its decoders of JPEG, CMYK, EXIF and PNG, and its filter, are others than Pillow's."""
    assert conform(bundle, "--npz", written(bundle, tmp_path / "mine.npz", client)) == 0
    assert "It conforms: 5 of 5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistakes", "words", "photos"),
    [
        ({"bgr": True}, "the channels are in the order B, G, R", "orientation.jpg, cmyk.jpg, transparency.png, narrow"),
        ({"antialias": False}, "the bicubic filter has no antialiasing", "large.png"),
        ({"std": [1.0, 1.0, 1.0]}, "is not divided by the standard deviation", "orientation.jpg, cmyk.jpg, trans"),
        ({"side": 64}, "resized to cover the crop of (64, 64), not (73, 73)", "orientation.jpg, cmyk.jpg, trans"),
        ({"orientation": False}, "the EXIF orientation is ignored", "orientation.jpg"),
    ],
)
def test_a_deliberate_mistake_is_named_with_the_photos_that_show_it(
    mistakes: dict[str, Any],
    words: str,
    photos: str,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert conform(bundle, "--npz", written(bundle, tmp_path / "mine.npz", client, **mistakes)) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.endswith(").") and words in line)
    assert photos in line


@pytest.mark.slow
def test_two_mistakes_at_once_are_both_named(bundle: Path) -> None:
    loaded, kit = load_bundle(bundle), kit_of(bundle)
    found = {item.photo.name: client(item.photo.content, bgr=True, orientation=False).numpy() for item in kit}
    findings = {one.photo: one.mistakes for one in judge_inputs(loaded.manifest, kit, found)}
    both = findings["orientation.jpg"]
    assert both == Mistakes("the EXIF orientation is ignored", "", "the channels are in the order B, G, R")


@pytest.mark.slow
def test_every_mistake_with_a_letterbox_is_told_from_the_others(tmp_path: Path) -> None:
    loaded = load_bundle(with_kit(make_detection_bundle(tmp_path / "bundle")))
    (item, *_) = kit = [item for item in read_kit(loaded) if item.photo.name == "orientation"]
    spec = loaded.manifest.preprocessing
    maker = Maker(task_of(loaded.manifest), spec, item.photo.content)
    for one in every_mistake(spec, 1):
        mine = maker.input(one)
        (finding,) = judge_inputs(loaded.manifest, kit, {"orientation": mine})
        assert finding.passed or finding.mistakes == one, finding
        assert not (finding.passed and one.shaping)


def swapped(bundle: Path, target: Path) -> Path:
    """The graph as a tool leaves it that takes pictures as OpenCV has them."""
    model = onnx.load(bundle / "model.onnx")
    (weight,) = (entry for entry in model.graph.initializer if entry.name == "weight1")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), "weight1"))
    onnx.save(model, target)
    return target


def test_a_graph_conforms_or_it_is_said_what_input_it_wants(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert conform(bundle, "--onnx", bundle / "model.onnx") == 0
    assert conform(bundle, "--onnx", swapped(bundle, tmp_path / "swapped.onnx")) == 1
    assert (
        "wants an input of which this is so: the channels are in the order B, G, R, with mean"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_outputs_alone_tell_what_was_done_to_the_file(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a program that gives nothing but logits."""
    monkeypatch.setenv("COLUMNS", "300")
    from convmae_deploy.backends.runtimes import start_backend

    backend = start_backend(load_bundle(bundle), device="cpu")
    arrays: dict[str, Any] = {
        f"outputs/{item.photo.name}/logits": backend.run(
            client(item.photo.content, std=[1.0, 1.0, 1.0]).numpy()[None], ["logits"]
        )["logits"]
        for item in kit_of(bundle)
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    assert conform(bundle, "--npz", tmp_path / "mine.npz") == 1
    assert "is not divided by the standard deviation (orientation.jpg" in capsys.readouterr().out


def test_requests_that_cannot_be_carried_out_are_sentences(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    last: dict[str, Any] = {"inputs/cmyk": np.zeros((64, 64, 3), np.float32)}
    np.savez(tmp_path / "last.npz", **last)
    plain = make_bundle(tmp_path / "plain")
    for arguments, words in [
        ((bundle,), "expected one of http://HOST:PORT, --npz FILE and --onnx FILE"),
        ((bundle, "--npz", tmp_path / "text.npz"), "must be an .npz file of numeric arrays"),
        ((bundle, "--npz", tmp_path / "other.npz"), "must hold arrays such as inputs/orientation"),
        ((bundle, "--npz", tmp_path / "last.npz"), "its channels come last"),
        ((bundle, "--onnx", tmp_path / "none.onnx"), "ONNX Runtime cannot load"),
        ((bundle, "ftp://host"), "expected http://HOST:PORT"),
        ((bundle, "http://127.0.0.1:9"), "does not answer"),
        ((plain, "--onnx", plain / "model.onnx"), "holds no conformance.zip"),
    ]:
        assert conform(*arguments) == 2  # type: ignore[arg-type]
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


@pytest.mark.slow
def test_a_redirection_is_not_followed_so_that_the_key_stays_with_the_server(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://{self.headers['Host']}/stolen")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Nothing is printed."""

    (tmp_path / "key").write_text("secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert conform(bundle, url, "--api-key-file", tmp_path / "key") == 2
        server.shutdown()
    assert "answered 302" in capsys.readouterr().err
    assert asked == [f"/v2/models/{load_bundle(bundle).manifest.name}"]


def test_the_file_says_for_other_tools_what_is_in_it(bundle: Path) -> None:
    from zipfile import ZipFile

    with ZipFile(bundle / "conformance.zip") as archive:
        content = json.loads(archive.read("kit.json"))
    assert content["preprocessing"]["resize"] == [73, 73] and content["input"]["name"] == "image"


@pytest.mark.slow
def test_a_program_for_a_graph_that_takes_levels_is_judged_in_levels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_kit(take_levels(make_bundle(tmp_path / "tiny")))
    assert all(item.input.dtype == np.uint8 for item in kit_of(bundle))

    def levels(content: bytes, **mistakes: Any) -> torch.Tensor:
        made = client(content, **mistakes) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        return (255 * made).round().to(torch.uint8)

    assert conform(bundle, "--npz", written(bundle, tmp_path / "right.npz", levels)) == 0
    assert conform(bundle, "--npz", written(bundle, tmp_path / "bgr.npz", levels, bgr=True)) == 1
    assert "the channels are in the order B, G, R" in " ".join(capsys.readouterr().out.split())
    assert conform(bundle, "--npz", written(bundle, tmp_path / "normalised.npz", client)) == 1
    assert "the levels are normalised, which the graph does itself" in " ".join(capsys.readouterr().out.split())
    assert conform(bundle, "--onnx", bundle / "model.onnx") == 0
