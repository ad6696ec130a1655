"""Why this class, on the web page: buttons beside the classes, and cells over the photo."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.tasks.explanation_drawing import AGAINST, FOR, OPACITY
from tests.media.photo_files import photo

pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")

from selenium.webdriver.common.keys import Keys  # noqa: E402

from tests.serving.page.page_driver import PageDriver, missing_program  # noqa: E402
from tests.serving.running_server import RunningServer  # noqa: E402

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")

CELLS = """const canvas = document.querySelector("#overlay .contributions"), {width, height} = canvas;
    return [height, width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]]"""
PRESSED = (
    "return [...document.querySelectorAll('.why')].map((button) => button.getAttribute('aria-pressed') === 'true')"
)
# The addresses asked, and `window.answer`, which may answer in the server's place.
WATCHED = """const real = window.real = window.fetch;
    window.asked = [];
    window.fetch = (url, options = {}) => {
      if (String(url).includes("explain=map")) window.asked.push(String(url));
      return window.answer?.(String(url), options) ?? real(url, options);
    };"""
REFUSAL = """window.answer = (url) => !url.includes("explain=map") ? null : Promise.resolve(new Response(
    JSON.stringify({error: {code: "invalid_parameter", message: "of tiny, its head stands on Gather"}}),
    {status: 422}));"""

HOLD = """const held = arguments[0];
    window.answer = (url, options) => !url.includes(held) ? null : new Promise((resolve) => {
      window.release = async () => {
        const answer = await window.real(url, options);
        await answer.clone().json();
        resolve(answer);
        window.late = true;
      };
    });"""


@pytest.fixture(scope="module")
def page_server(three_tasks: RunningServer) -> RunningServer:
    return three_tasks


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of 150 x 100 pixels, of which the tiny classifier sees the middle."""
    path = tmp_path_factory.mktemp("photos") / "colourful.png"
    photo(150, 100).save(path)
    return path


@pytest.fixture
def result(page: PageDriver, picture: Path) -> PageDriver:
    """The page with the three classes of the photo."""
    page.open(script=WATCHED)
    page.wait_for_model()
    page.pick(picture)
    assert page.script(PRESSED) == [False] * 3
    return page


def why(page: PageDriver, row: int) -> None:
    page.script("document.querySelectorAll('.why')[arguments[0]].focus()", row)
    page.press(Keys.ENTER)


def wait_for_cells(page: PageDriver, label: str) -> None:
    page.wait(lambda: f" {label}, from" in " ".join(labels(page)), f"the cells of {label}")


def labels(page: PageDriver) -> list[str]:
    found: list[str] = page.script(
        "return [...document.querySelectorAll('#overlay .cells')].map((canvas) => canvas.ariaLabel)"
    )
    return found


def asked(page: PageDriver) -> list[str]:
    query = "return window.asked.map((url) => new URLSearchParams(url.split('?')[1]).get('explain_label'))"
    found: list[str] = page.script(query)
    return found


def test_enter_on_a_class_shows_what_each_cell_adds_to_it_and_enter_again_hides_it(
    page_server: RunningServer, result: PageDriver, picture: Path
) -> None:
    named = result.script("return [...document.querySelectorAll('.why')].map((button) => button.ariaLabel)")
    classes = result.texts("#ranking .label")
    assert named == [f"Why {label}?" for label in classes] and len(classes) == 3
    why(result, 1)
    wait_for_cells(result, classes[1])

    answer: dict[str, Any] = page_server.request(
        f"/v1/classify?explain=map&explain_label={classes[1]}", picture.read_bytes()
    ).json()
    cells = np.array(answer["contributions"])
    height, width, data = result.script(CELLS)
    assert (height, width) == cells.shape
    pixels = np.reshape(data, (*cells.shape, 4))
    strength = np.abs(cells) / np.abs(cells).max()
    np.testing.assert_allclose(pixels[..., 3], 255 * OPACITY * strength, atol=1)
    strong = strength > 0.2  # a canvas keeps few digits of what is nearly transparent
    expected = np.where(cells[..., None] > 0, FOR, AGAINST)
    np.testing.assert_allclose(pixels[strong][:, :3], expected[strong], atol=3)
    note = result.one("#cells-note").text.replace("\u00a0", " ").replace("\u2212", "-")
    assert f"logit {answer['logit']:.2f} = {cells.sum():.2f} of the cells" in note
    assert "An additive decomposition of the average pooling, not a cause." in note
    assert result.content("[role=status]") == result.content("#cells-note")
    ends = [float(text.replace("\u2212", "-")) for text in result.texts("#cells-range span:not(.scale)")]
    assert ends == pytest.approx([cells.min(), cells.max()], rel=0.06)
    box = """const [outer, inner] = ["#crop", "#overlay .cells"].map((s) => document.querySelector(s)
        .getBoundingClientRect()); return [outer.left - inner.left, outer.top - inner.top,
        outer.width - inner.width, outer.height - inner.height]"""
    assert result.script(box) == pytest.approx([0, 0, 0, 0], abs=0.6)  # the part that the model sees
    grey = "return getComputedStyle(preview).filter"
    assert result.script(grey) == "grayscale(1)"
    result.one("#overlay-shown").click()
    assert result.script(grey) == "none"

    assert result.script(PRESSED) == [False, True, False]
    why(result, 1)
    assert result.script(PRESSED) == [False] * 3 and labels(result) == []
    assert not result.one("#cells-key").is_displayed() and not result.one("#overlay-choice").is_displayed()
    why(result, 1)  # and again, from what was fetched
    wait_for_cells(result, classes[1])
    assert result.one("#overlay").is_displayed()
    result.one("#ranking li").click()  # anywhere in the row of another
    wait_for_cells(result, classes[0])
    assert result.script(PRESSED) == [True, False, False]
    assert asked(result) == [classes[1], classes[0]]
    assert result.console() == []


def test_a_cell_of_a_level_and_a_class_take_the_photo_from_each_other(result: PageDriver) -> None:
    why(result, 0)
    wait_for_cells(result, result.texts("#ranking .label")[0])
    result.one(".map-button").click()
    result.wait(lambda: result.one("#cells-note").text.startswith("Level e1"), "the likeness")
    assert result.script(PRESSED) == [False] * 3
    assert result.texts("#overlay .contributions") == [] and result.one("#maps .cell").is_displayed()
    why(result, 0)
    wait_for_cells(result, result.texts("#ranking .label")[0])
    assert result.texts("#overlay .likeness") == [] and not result.one("#maps .cell").is_displayed()


def test_a_model_that_cannot_be_explained_says_so_in_a_sentence_and_the_result_stays(result: PageDriver) -> None:
    result.script(REFUSAL)
    why(result, 0)
    result.wait(lambda: result.one("#cells-note").text, "the sentence")
    assert result.one("#cells-note").text == "Of tiny, its head stands on Gather."
    assert result.content("[role=status]") == "Of tiny, its head stands on Gather."
    assert result.script(PRESSED) == [False] * 3 and not result.one("#cells-range").is_displayed()
    assert len(result.texts("#ranking .label")) == 3 and result.one("[role=alert]").text == ""
    result.script("window.answer = null")
    why(result, 0)
    wait_for_cells(result, result.texts("#ranking .label")[0])


def test_an_answer_that_comes_when_another_class_was_chosen_is_not_drawn(result: PageDriver) -> None:
    classes = result.texts("#ranking .label")
    result.script(HOLD, f"explain_label={classes[0]}&")
    why(result, 0)
    why(result, 1)
    wait_for_cells(result, classes[1])
    result.script("window.release()")
    result.wait(lambda: result.script("return window.late"), "the late answer")
    assert result.script(PRESSED) == [False, True, False] and f" {classes[1]}, from" in labels(result)[0]


def test_classes_of_one_name_are_asked_for_by_their_index(page: PageDriver, picture: Path) -> None:
    renamed = """window.answer = (url) => !url.endsWith("v1/models/tiny") ? null : real(url).then(async (answer) =>
        new Response(JSON.stringify({...await answer.json(), labels: ["a", "b", "b"]})));"""
    page.open(script=WATCHED + renamed)
    page.wait_for_model()
    page.pick(picture)
    row = page.texts("#ranking .label").index("b")
    why(page, row)
    wait_for_cells(page, "b")
    assert asked(page) == ["1"]


def test_where_the_browser_cannot_display_the_photo_the_numbers_are_said(page: PageDriver, tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), "green").save(tmp_path / "photo.tiff")
    page.open()
    page.wait_for_model()
    page.pick(tmp_path / "photo.tiff")
    page.wait(lambda: "cannot display" in page.one("#crop-note").text, "the browser to give up")
    why(page, 0)
    page.wait(lambda: page.one("#cells-note").text, "the sentence")
    note = page.one("#cells-note").text
    assert "of the cells" in note and note.endswith("Nothing is drawn, as this browser cannot display the photo.")
    assert not page.one("#cells-range").is_displayed() and not page.one("#overlay-choice").is_displayed()
