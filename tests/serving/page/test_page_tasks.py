"""The web page for detection and segmentation models, in a headless Chromium against a server with three tasks."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from pycocotools import mask as coco_mask

from convmae_deploy.tasks.label_colours import palette
from tests.media.photo_files import photo
from tests.serving.sample_images import jpeg

pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")

from selenium.webdriver.support.ui import Select  # noqa: E402

from tests.serving.page.page_driver import PageDriver, missing_program, needs_curl, run  # noqa: E402
from tests.serving.running_server import RunningServer  # noqa: E402

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")

CANVAS = """const canvas = document.querySelector("#overlay canvas");
    const {width, height} = canvas;
    const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
    return [width, height, [...data], canvas.getAttribute("aria-label")]"""


@pytest.fixture(scope="module")
def page_server(three_tasks: RunningServer) -> RunningServer:
    return three_tasks


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo in which the tiny detector finds two objects at 50 %, three at 10 %."""
    path = tmp_path_factory.mktemp("photos") / "bright.png"
    Image.new("RGB", (192, 128), (210, 200, 190)).save(path)
    return path


@pytest.fixture(scope="module")
def colourful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "colourful.png"
    photo(150, 100).save(path)
    return path


def overlay(page: PageDriver) -> tuple[np.ndarray[Any, Any], str]:
    """The canvas over the photo as (H, W, 4), and what it says in words."""
    width, height, data, label = page.script(CANVAS)
    return np.array(data, np.uint8).reshape(height, width, 4), label


def assert_colour(pixels: np.ndarray[Any, Any], colours: np.ndarray[Any, Any]) -> None:
    """Within what a canvas loses of translucent colours, which it holds times their opacity."""
    assert pixels.size and np.abs(pixels[..., :3].astype(int) - colours).max() <= 2


def test_the_models_of_all_tasks_can_be_chosen_and_the_page_says_what_they_do(page: PageDriver) -> None:
    page.open()
    page.wait_for_model()
    assert page.texts("#model option") == ["tiny (classification)", "boxes (detection)", "areas (segmentation)"]
    titles = {"tiny": "Classify a photo", "boxes": "Find objects in a photo", "areas": "Segment a photo"}
    for name, title in titles.items():
        Select(page.one("#model")).select_by_value(name)
        page.wait(lambda title=title: page.one("h1").text == title, title)  # type: ignore[misc]
        assert page.one("#threshold-choice").get_attribute("hidden") == (None if name == "boxes" else "true")


def test_objects_are_drawn_on_the_photo_with_boxes_and_masks(
    three_tasks: RunningServer, page: PageDriver, bright: Path
) -> None:
    page.choose_model("boxes")
    page.pick(bright)

    found = three_tasks.request("/v1/detect?masks=rle", bright.read_bytes()).json()
    assert page.texts("#ranking .label") == [item["label"] for item in found] == ["dog", "cat"]
    assert page.texts("#ranking .score") == [f"{100 * item['score']:.1f} %" for item in found]
    pixels, words = overlay(page)
    assert pixels.shape == (128, 192, 4) and "2 objects" in words
    dog, cat = (coco_mask.decode(item["mask"]).astype(bool) for item in found)
    colours = palette(3)
    assert_colour(pixels[dog], colours[1])
    assert_colour(pixels[cat & ~dog], colours[0])
    assert (pixels[~dog & ~cat, 3] == 0).all() and (pixels[dog, 3] == 115).all()

    frame, *boxes = page.script("""const shape = (node) => { const {left, top, width, height} =
            node.getBoundingClientRect(); return [left, top, width, height]; };
        return [shape(document.querySelector("#photo-frame")), ...[...document.querySelectorAll(".box")].map(shape)]""")
    for item, (left, top, width, height) in zip(reversed(found), boxes, strict=True):
        scale = frame[2] / 192
        edges = [(left - frame[0]), (top - frame[1]), (left - frame[0] + width), (top - frame[1] + height)]
        assert [edge / scale for edge in edges] == pytest.approx(list(item["box"].values()), abs=0.5)
    assert page.texts(".tag") == [f"{item['label']} {100 * item['score']:.0f} %" for item in reversed(found)]
    assert "2 objects" in page.content("[role=status]") and not page.one("#levels").is_displayed()


def test_another_least_score_asks_again_and_nothing_found_is_said(page: PageDriver, bright: Path) -> None:
    page.choose_model("boxes")
    page.pick(bright)
    set_score = """threshold.value = arguments[0]; threshold.dispatchEvent(new Event("input"));
        threshold.dispatchEvent(new Event("change"))"""
    page.script(set_score, 10)
    page.wait(lambda: len(page.texts(".box")) == 3, "the third object")
    assert page.one("#threshold-text").text == "10 %"
    page.script(set_score, 95)
    page.wait(lambda: "Nothing found with a score of at least 95.0 %" in page.one("#ranking").text, "the sentence")
    assert page.texts(".box") == [] and not page.one("#overlay-choice").is_displayed()


def test_a_segmentation_is_laid_over_the_photo_and_named_in_a_legend(
    three_tasks: RunningServer, page: PageDriver, colourful: Path
) -> None:
    page.choose_model("areas")
    page.pick(colourful)

    answer = three_tasks.request("/v1/segment", colourful.read_bytes(), headers={"Accept": "image/png"})
    labels = np.asarray(Image.open(io.BytesIO(answer.body)))
    pixels, words = overlay(page)
    assert pixels.shape == (100, 150, 4)
    assert_colour(pixels, palette(4)[labels])
    assert (pixels[..., 3] == 153).all()
    classes = np.array(["sky", "road", "tree", "car"])
    order = np.argsort(-np.bincount(labels.ravel(), minlength=4), kind="stable")
    names = [classes[index] for index in order if (labels == index).any()]
    assert page.texts("#ranking .label") == names and all(name in words for name in names)
    shares = [float(text.rstrip(" %")) for text in page.texts("#ranking .score")]
    assert shares == pytest.approx([100 * (labels == index).mean() for index in order[: len(names)]], abs=0.051)
    swatches = page.script(
        "return [...document.querySelectorAll('.swatch')].map((node) => getComputedStyle(node).backgroundColor)"
    )
    assert swatches == [f"rgb({', '.join(map(str, palette(4)[index].tolist()))})" for index in order[: len(names)]]

    page.one("#overlay-shown").click()
    assert not page.one("#overlay").is_displayed()
    page.one("#overlay-shown").click()
    assert page.one("#overlay").is_displayed()


def test_what_was_found_goes_with_the_photo_and_the_model(page: PageDriver, bright: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no photo", encoding="utf-8")
    page.choose_model("boxes")
    page.pick(bright)
    assert page.texts(".box")
    page.pick(note, "error")
    assert page.texts(".box") == [] and page.content("[role=alert]")
    page.pick(bright)
    Select(page.one("#model")).select_by_value("tiny")
    page.wait(lambda: page.texts("figcaption"), "the feature levels")
    page.wait_for_state("done")
    assert page.texts(".box") == [] and page.one("#levels").is_displayed()


@needs_curl
@pytest.mark.parametrize("name", ["boxes", "areas"])
def test_the_commands_on_the_page_give_what_they_say(page: PageDriver, bright: Path, tmp_path: Path, name: str) -> None:
    page.choose_model(name)
    page.pick(bright)
    shutil.copy(bright, tmp_path / bright.name)
    first, second = page.texts(".command code")
    printed = run(first, tmp_path)
    assert run(second, tmp_path) == b""
    if name == "boxes":
        assert [item["label"] for item in json.loads(printed)] == ["dog", "cat"]
        assert all(item["mask"]["counts"] for item in json.loads((tmp_path / "objects.json").read_bytes()))
    else:
        assert printed == b"" and json.loads((tmp_path / "segments.json").read_bytes())[0]["mask"]
        with Image.open(tmp_path / "labels.png") as labels:
            assert labels.size == (192, 128)


@pytest.mark.parametrize("name", ["boxes", "areas"])
def test_nothing_scrolls_sideways_or_leaves_the_origin(page: PageDriver, bright: Path, name: str) -> None:
    page.choose_model(name, width=360)
    page.pick(bright)
    width, inside, content = page.script(
        "const root = document.documentElement; return [innerWidth, root.clientWidth, root.scrollWidth]"
    )
    assert width == 360 and content <= inside
    requested = page.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [url for url in requested if not url.removeprefix("blob:").startswith(f"{page.origin}/")] == []
    assert page.console() == []


def test_names_of_classes_are_text_on_the_photo_too(page: PageDriver, bright: Path) -> None:
    answer = [
        {
            "label": "<b>x</b>",
            "score": 0.9,
            "box": {"xmin": 0, "ymin": 0, "xmax": 9, "ymax": 9},
            "mask": {"size": [128, 192], "counts": "".join(chr(48 + code) for code in (32, 0))},
        }
    ]
    answered = f"""const real = window.fetch;
        window.fetch = (url, options = {{}}) => options.body
            ? Promise.resolve(new Response({json.dumps(json.dumps(answer))})) : real(url, options);"""
    page.open(script=answered)
    page.wait_for_model()
    Select(page.one("#model")).select_by_value("boxes")
    page.wait(lambda: "boxes" in page.one("footer").text, "the detector")
    page.pick(bright)
    assert (
        page.texts(".tag") == ["<b>x</b> 90 %"]
        and page.script("return document.querySelectorAll('main b').length") == 0
    )


@needs_curl
def test_every_command_of_the_reference_that_sends_a_photo_works(page: PageDriver, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    page.open("/docs")
    page.wait(lambda: page.texts("[data-path]"), "the operations")

    commands = page.texts("[data-method='post']:not(:has(.unavailable)) .command code")
    assert len(commands) >= 12 and not any("clip.mp4" in command for command in commands)
    for command in (command.replace("NAME", "tiny").replace("VERSION", "1") for command in commands):
        printed = run(command, tmp_path)
        if "-o answer.safetensors" in command:
            assert printed == b""
            assert safetensors.numpy.load_file(tmp_path / "answer.safetensors")
        else:
            assert "error" not in json.loads(printed), command


def test_what_this_server_cannot_answer_is_marked_and_cannot_be_tried(page: PageDriver) -> None:
    page.open("/docs")
    page.wait(lambda: page.texts("[data-path]"), "the operations")
    marked = page.script("return [...document.querySelectorAll('.unavailable')].map((p) => p.parentNode.dataset.path)")
    assert "/v1/classify-video" in marked and not {"/v1/classify", "/v1/detect", "/v1/segment"} & set(marked)
    card = page.one("[data-path='/v1/classify-video']")
    assert "Not on this server: " in card.text and "Try it" not in card.text
    assert page.script("return document.querySelectorAll('.contents .off').length") == len(marked)


def test_every_other_operation_can_be_tried(page: PageDriver, bright: Path) -> None:
    page.open("/docs")
    page.wait(lambda: page.texts("[data-path]"), "the operations")

    def sent(path: str, file: Path | None = None, **given: str) -> tuple[str, str]:
        """The status and the text of the answer to a form that is filled in."""
        card = f"[data-path='{path}']"
        page.script("document.querySelector(arguments[0]).open = true", f"{card} details.answer")
        for title, value in given.items():
            fill = """const [form, title, value] = arguments;
                const labels = [...document.querySelectorAll(`${form} label`)];
                const label = labels.find((l) => l.innerText.startsWith(title));
                const control = document.getElementById(label.htmlFor);
                control.value = value;
                control.dispatchEvent(new Event("change"));"""
            page.script(fill, f"{card} .try", title.replace("_as", " as"), value)
        if file is not None:
            page.one(f"{card} .try input[type=file]").send_keys(str(file))
        page.script("document.querySelector(arguments[0]).replaceChildren()", f"{card} .result")
        page.one(f"{card} .try [type=submit]").click()
        page.wait(lambda: page.texts(f"{card} .result .status"), "the status")
        text = page.script("return document.querySelector(arguments[0]).innerText", f"{card} .result")
        return page.texts(f"{card} .result .status")[0], text

    status, answer = sent("/v1/classify", bright, top_k="2")
    assert status == "200 OK" and answer.count('"label"') == 2
    status, answer = sent("/v1/classify", bright, Send_as="1", top_k="1")
    assert status == "200 OK" and answer.count('"label"') == 1
    assert sent("/v1/classify", Send_as="2")[0] == "200 OK"
    status, answer = sent("/v1/classify", top_k="1", model="none")
    assert status.startswith("404") and "unknown_model" in answer
    assert sent("/v1/segment", bright, Answer_as="image/png")[0] == "200 OK"
    page.wait(lambda: page.script("return document.querySelector('.picture').naturalWidth") == 192, "the picture")
    assert "Save the application/x-safetensors" in sent("/v1/features", bright)[1]
    status, answer = sent("/v1/models/{name}", name="boxes")
    assert status == "200 OK" and '"detection"' in answer
    assert sent("/metrics")[0] == "200 OK"
    assert [line for line in page.console() if " 404 " not in line] == []
