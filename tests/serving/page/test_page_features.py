"""The web page for models without a head, in a headless Chromium, of photos and of videos."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from convmae_deploy.tasks.components import principal_components
from tests.bundle_factory import make_feature_bundle, make_video_feature_bundle
from tests.serving.sample_images import jpeg
from tests.video_files import make_video

pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")


from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from tests.serving.page.page_driver import PageDriver, missing_program, needs_curl, run  # noqa: E402
from tests.serving.running_server import RunningServer, run_server  # noqa: E402

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")

CANVASES = """return [...document.querySelectorAll("canvas")].map((canvas) => {
    const {width, height} = canvas, {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
    return [canvas.dataset.level, width, height, [...data]]})"""


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A page_server with a model of photos without a head, `maps`, and one of videos, `clips`."""
    folder = tmp_path_factory.mktemp("features")
    maps = make_feature_bundle(folder / "maps", name="maps")
    clips = make_video_feature_bundle(folder / "clips", name="clips")
    with run_server(folder, {"CONVMAE_BUNDLE": f"{maps}:{clips}"}) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A photo and a video, by the model that they are for."""
    folder = tmp_path_factory.mktemp("files")
    paths = {"maps": folder / "photo.jpg", "clips": folder / "clip.webm"}
    paths["maps"].write_bytes(jpeg())
    paths["clips"].write_bytes(make_video("webm", size=(64, 96)))
    return paths


def colours(level: NDArray[np.float32]) -> NDArray[np.float64]:
    """(cells, 3) of a map (C, H, W), or of the middle slot of one (C, slots, H, W), from 0 to 255."""
    slots = level.shape[1] if level.ndim == 4 else 1
    scores = principal_components(level, 3)[0].reshape(3, -1)
    low, high = np.percentile(scores, (1, 99), axis=1)[:, :, None]
    spread = np.where(high > low, high - low, 1)
    stretched = np.where(high > low, np.clip(255 * (scores - low) / spread, 0, 255), 128)
    return np.asarray(stretched.reshape(3, slots, -1)[:, slots // 2].T)


@pytest.mark.parametrize(("name", "medium"), [("maps", "photo"), ("clips", "video")])
def test_the_page_shows_the_levels_and_the_length_of_the_pooled_vector(
    page_server: RunningServer, page: PageDriver, files: dict[str, Path], name: str, medium: str
) -> None:
    page.choose_model(name)
    assert page.one("h1").text == f"Look at the features of a {medium}"
    assert page.one("#picker-title").text == f"Choose a {medium}"
    page.pick(files[name])

    query = f"/v1/features?model={name}&levels=pooled,e1,e2,e3,e4"
    answer = page_server.request(query, files[name].read_bytes(), {"Accept": "application/x-safetensors"})
    found = safetensors.numpy.load(answer.body)
    assert page.texts("#ranking .label") == ["Values", "Length (Euclidean)"]
    assert page.texts("#ranking .score") == ["8", f"{np.linalg.norm(found['pooled']):.3f}"]
    assert "A vector of 8 values" in page.content("[role=status]") and "inference" in page.one("#timing").text
    canvases = page.script(CANVASES)
    assert [canvas[:3] for canvas in canvases] == [["e1", 16, 16], ["e2", 8, 8], ["e3", 4, 4], ["e4", 2, 2]]
    for level, *_, pixels in canvases:
        np.testing.assert_allclose(np.reshape(pixels, (-1, 4))[:, :3], colours(found[level][0]), atol=1)
    captions = page.texts("figcaption")
    for caption, level, stride in zip(captions, ("e1", "e2", "e3", "e4"), (4, 8, 16, 32), strict=True):
        shape = " × ".join(map(str, found[level].shape[1:]))
        assert f"{level}, stride {stride}" in caption and shape in caption and "% of variance shown" in caption
        assert ("slot 2 of 2 shown" in caption) == (medium == "video")
    facts = dict(zip(page.texts("#facts dt"), page.texts("#facts dd"), strict=True))
    assert "Classes" not in facts and facts["Feature levels"] == "e1, e2, e3, e4 at strides 4, 8, 16, 32"
    assert page.console() == []


LIKENESS = """const canvas = document.querySelector("#overlay .likeness"), {width, height} = canvas;
    return [width, height, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]]"""


def test_a_click_on_a_cell_shows_on_the_photo_what_is_like_it_and_so_do_the_keys(
    page_server: RunningServer, page: PageDriver, files: dict[str, Path]
) -> None:
    page.choose_model("maps")
    page.pick(files["maps"])
    answer = page_server.request(
        "/v1/features?model=maps&levels=e2", files["maps"].read_bytes(), {"Accept": "application/x-safetensors"}
    )
    vectors = safetensors.numpy.load(answer.body)["e2"][0].reshape(6, 64)
    unit = vectors / np.linalg.norm(vectors, axis=0)

    button = page.chrome.find_elements("css selector", ".map-button")[1]
    side = button.size["width"]
    ActionChains(page.chrome).move_to_element_with_offset(
        button, -side / 2 + side * 1.5 / 8, side / 16
    ).click().perform()
    page.wait(lambda: page.texts("#overlay .likeness"), "the likeness")
    note = page.one("#cells-note").text
    lowest = (unit[:, 33] @ unit).min()
    assert note.startswith("Level e2, row 5, column 2: the brighter, the more alike.")
    assert f"Cosine from {lowest:.2f} to 1; 1 kB fetched".replace("-", "\u2212") in note
    width, height, data = page.script(LIKENESS)
    pixels = np.reshape(data, (64, 4))
    assert (width, height) == (8, 8) and pixels[:, :3].sum(axis=1).argmax() == 33
    likeness = unit[:, 33] @ unit
    assert np.corrcoef(pixels[:, :3].sum(axis=1), likeness)[0, 1] > 0.9
    box = """const [outer, inner] = ["#crop", "#overlay .likeness"].map((s) => document.querySelector(s)
        .getBoundingClientRect()); return [outer.left - inner.left, outer.top - inner.top,
        outer.width - inner.width, outer.height - inner.height]"""
    assert page.script(box) == pytest.approx([0, 0, 0, 0], abs=0.6)  # the part that the model sees

    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    page.wait(lambda: "row 6, column 3" in page.one("#cells-note").text, "the next cell")
    third = page.chrome.find_elements("css selector", ".map-button")[2]
    page.script("arguments[0].focus()", third)
    page.press(Keys.ARROW_LEFT, Keys.ENTER)
    page.wait(lambda: "Level e3, row 3, column 2" in page.one("#cells-note").text, "the other level")
    assert "Level e3, row 3, column 2" in page.content("[role=status]")
    assert len(page.texts("#maps .cell")) == 4
    assert page.script("return [...document.querySelectorAll('#maps .cell')].map((mark) => mark.hidden)") == [
        True,
        True,
        False,
        True,
    ]
    page.pick(files["maps"])
    assert page.texts("#overlay .likeness") == [] and not page.one("#cells-key").is_displayed()
    assert page.console() == []


def test_a_level_that_does_not_come_is_said_and_the_result_stays(page: PageDriver, files: dict[str, Path]) -> None:
    failing = """const real = window.fetch;
        window.fetch = (url, options = {}) => url.includes("f16") ? Promise.reject(new TypeError("x"))
            : real(url, options);"""
    page.open(script=failing)
    page.wait_for_model()
    page.pick(files["maps"])
    page.one(".map-button").click()
    page.wait(lambda: page.one("#cells-note").text, "the sentence")
    assert page.one("#cells-note").text.startswith("The server did not answer.")
    assert page.content("[role=status]") == page.one("#cells-note").text
    assert page.one("#ranking").is_displayed() and page.one("[role=alert]").text == ""  # what was found stays
    assert not page.one("#cells-range").is_displayed() and not page.one("#maps .cell").is_displayed()


@needs_curl
@pytest.mark.parametrize("name", ["maps", "clips"])
def test_the_commands_on_the_page_write_what_they_say(
    page: PageDriver, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    page.choose_model(name)
    page.pick(files[name])
    shutil.copy(files[name], tmp_path)
    assert [run(command, tmp_path) for command in page.texts(".command code")] == [b"", b""]
    assert set(safetensors.numpy.load_file(tmp_path / "pooled.safetensors")) == {"pooled"}
    assert set(safetensors.numpy.load_file(tmp_path / "features.safetensors")) == {"e1", "e2", "e3", "e4"}
    page.chrome.find_elements("css selector", "[role=tab]")[2].click()
    (program,) = page.texts(".command code")
    printed = run(shlex.join([sys.executable, "-c", program]), tmp_path).decode()
    pooled = safetensors.numpy.load_file(tmp_path / "pooled.safetensors")["pooled"]
    np.testing.assert_allclose(np.array(printed.strip(" [\n]").split(), np.float32), pooled[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["maps", "clips"])
def test_nothing_scrolls_sideways_at_the_width_of_a_phone(page: PageDriver, files: dict[str, Path], name: str) -> None:
    page.choose_model(name, width=360)
    page.pick(files[name])
    width, inside, content = page.script(
        "const root = document.documentElement; return [innerWidth, root.clientWidth, root.scrollWidth]"
    )
    assert width == 360 and content <= inside
