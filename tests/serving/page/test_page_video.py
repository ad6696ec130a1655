"""The web page for a video model, in a headless Chromium, against a server that has a classifier of photos as well."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.serving.sample_images import jpeg
from tests.video_files import make_audio, make_gif, make_video

pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")

from selenium.webdriver.support.ui import Select  # noqa: E402

from tests.serving.page.page_driver import PageDriver, missing_program, needs_curl, run  # noqa: E402
from tests.serving.running_server import RunningServer  # noqa: E402

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")

SHOWN = """const clip = document.querySelector("#clip"), {width, height} = clip.getBoundingClientRect();
    return [clip.src.slice(0, 5), clip.videoWidth, clip.videoHeight, width / height, clip.controls, clip.muted]"""

BARS = """return [...document.querySelectorAll("#ranking .track")].map(
    (track) => track.firstChild.getBoundingClientRect().width / track.getBoundingClientRect().width)"""


@pytest.fixture(scope="module")
def page_server(video_server: RunningServer) -> RunningServer:
    return video_server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide video, of which the model sees the middle third."""
    path = tmp_path_factory.mktemp("videos") / "my clip.webm"
    path.write_bytes(make_video("webm", size=(64, 192), frames=40))
    return path


def open_page(page: PageDriver, width: int = 1280, script: str | None = None) -> None:
    page.open(width=width, script=script)
    page.wait_for_model()


def scores(answer: Any) -> list[str]:
    return [f"{100 * entry['score']:.1f} %" for entry in answer]


def test_the_page_says_that_it_takes_a_video(page: PageDriver) -> None:
    open_page(page)
    assert page.texts("#model option") == ["motion (video-classification)", "tiny (classification)"]
    assert page.one("h1").text == "Classify a video" and page.one("#picker-title").text == "Choose a video"
    assert page.one(".of-video").is_displayed() and not page.one(".of-photo").is_displayed()
    assert "The video goes to this server and nowhere else." in page.one(".intro").text
    assert page.one("#photo").get_attribute("accept").startswith("video/*,image/gif,.mkv")  # type: ignore[union-attr]
    facts = dict(zip(page.texts("#facts dt"), page.texts("#facts dd"), strict=True))
    assert (facts["Input"], facts["Sampling"]) == ("4 frames of 64 × 64 pixels", "frames in a row")


def test_a_video_is_shown_and_its_classes_with_bars(video_server: RunningServer, page: PageDriver, clip: Path) -> None:
    open_page(page)
    page.pick(clip)
    answer = video_server.request("/v1/classify-video", clip.read_bytes()).json()
    assert page.texts("#ranking .label") == [entry["label"] for entry in answer]
    assert page.texts("#ranking .score") == scores(answer)
    wanted = [entry["score"] for entry in answer]
    page.wait(lambda: page.script(BARS) == pytest.approx(wanted, abs=0.01), "the bars, which grow to their lengths")
    page.wait(lambda: page.one("#clip").is_displayed(), "the video")
    source, width, height, ratio, *controls = page.script(SHOWN)
    assert (source, width, height, controls) == ("blob:", 192, 64, [True, True])
    assert ratio == pytest.approx(3, rel=0.02)
    assert page.one("#crop-note").text == "my clip.webm, 192 × 64, 1.6 s; the model sees the middle 33.3 % of its width"
    assert not page.one("#crop").is_displayed() and not page.one("#preview").is_displayed()
    assert not page.one("#levels").is_displayed()
    assert answer[0]["label"] in page.content("[role=status]")
    assert page.one("#picker-title").text == "Choose another video"


def test_nothing_lies_over_the_controls_of_the_video(page: PageDriver, clip: Path) -> None:
    open_page(page)
    page.pick(clip)
    page.wait(lambda: page.one("#clip").is_displayed(), "the video")
    assert (
        page.script("""const {left, bottom} = document.querySelector("#clip").getBoundingClientRect();
        return document.elementFromPoint(left + 20, bottom - 15).id""")
        == "clip"
    )


def test_a_gif_moves_as_a_picture(page: PageDriver, tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    path.write_bytes(make_gif())
    open_page(page)
    page.pick(path)
    page.wait(lambda: page.one("#preview").is_displayed(), "the picture")
    assert not page.one("#clip").is_displayed() and page.texts("#ranking .label")
    assert page.one("#preview").get_attribute("alt") == "The video moving.gif"


def test_what_the_browser_cannot_play_is_classified_all_the_same(page: PageDriver, tmp_path: Path) -> None:
    path = tmp_path / "old.avi"
    path.write_bytes(make_video("avi"))
    open_page(page)
    page.pick(path)
    page.wait(lambda: "cannot display" in page.one("#crop-note").text, "the sentence")
    assert page.texts("#ranking .label") and not page.one("#photo-frame").is_displayed()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("photo.jpg", jpeg(), "send this picture to /v1/classify"),
        ("sound.mp4", make_audio(), "audio only"),
        ("cut.mp4", make_video()[:2000], "send the whole file"),
        ("notes.txt", b"no video at all", "found text"),
    ],
)
def test_a_bad_file_is_a_sentence(page: PageDriver, tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    open_page(page)
    page.pick(path, "error")
    assert words in page.one("[role=alert]").text
    assert not page.one("#predictions").is_displayed()


def test_a_video_is_put_away_for_a_model_of_photos(page: PageDriver, clip: Path, tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(jpeg())
    open_page(page)
    page.pick(clip)
    Select(page.one("#model")).select_by_value("tiny")
    page.wait(lambda: page.one("h1").text == "Classify a photo", "the other model")
    page.wait_for_state("idle")
    assert not page.one("#clip").is_displayed() and not page.one("#predictions").is_displayed()
    assert "image/jpeg" in page.one("#photo").get_attribute("accept")  # type: ignore[operator]
    page.pick(photo)
    page.wait(lambda: page.one("#preview").is_displayed(), "the photo")
    assert page.texts("figcaption") and not page.one("#clip").is_displayed()
    Select(page.one("#model")).select_by_value("motion")
    page.wait(lambda: page.one("#picker-title").text == "Choose a video", "the first model")


@needs_curl
def test_the_commands_on_the_page_give_what_they_say(
    video_server: RunningServer, page: PageDriver, clip: Path, tmp_path: Path
) -> None:
    open_page(page)
    page.pick(clip)
    shutil.copy(clip, tmp_path / clip.name)
    once, several = (json.loads(run(command, tmp_path)) for command in page.texts(".command code"))
    assert scores(once) == page.texts("#ranking .score")
    query = "?temporal_views=2&spatial_views=3"
    assert scores(several) == scores(video_server.request(f"/v1/classify-video{query}", clip.read_bytes()).json())
    assert scores(several) != scores(once)


@needs_curl
def test_the_commands_of_the_reference_send_a_video(page: PageDriver, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(make_video())
    page.open("/docs")
    page.wait(lambda: page.texts("[data-path]"), "the operations")
    commands = page.texts("[data-path='/v1/classify-video'] .command code")
    assert len(commands) == 3
    answers = [json.loads(run(command, tmp_path)) for command in commands]
    assert answers[0] == answers[1] == answers[2] and {entry["label"] for entry in answers[0]} == {
        "left",
        "right",
        "up",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_and_leaves_nothing_in_the_console(page: PageDriver, clip: Path, scheme: str) -> None:
    page.media(prefers_color_scheme=scheme)
    try:
        open_page(page, width=360)
        page.pick(clip)
        page.wait(lambda: page.one("#clip").is_displayed(), "the video")
        width, inside, content, shown = page.script("""const root = document.documentElement;
            const {left, right} = document.querySelector("#clip").getBoundingClientRect();
            return [innerWidth, root.clientWidth, root.scrollWidth, [left, right]]""")
        assert width == 360 and content <= inside and 0 <= shown[0] < shown[1] <= inside
        requested = page.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [url for url in requested if not url.removeprefix("blob:").startswith(f"{page.origin}/")] == []
        assert page.console() == []
    finally:
        page.media()


def test_names_of_classes_and_files_are_text(page: PageDriver, tmp_path: Path) -> None:
    path = tmp_path / "<b>x<b>.webm"
    path.write_bytes(make_video("webm"))
    answer = json.dumps([{"label": "<i>y</i>", "score": 0.9}])
    answered = f"""const real = window.fetch;
        window.fetch = (url, options = {{}}) => options.body
            ? Promise.resolve(new Response({json.dumps(answer)})) : real(url, options);"""
    open_page(page, script=answered)
    page.pick(path)
    page.wait(lambda: page.one("#clip").is_displayed(), "the video")
    assert page.texts("#ranking .label") == ["<i>y</i>"] and path.name in page.one("#crop-note").text
    assert page.script("return document.querySelectorAll('main :is(b, i)').length") == 0
