"""The web page, in a headless Chromium against a running server with a tiny bundle."""

import base64
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from tests.bundle_factory import make_bundle

pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")

from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

from tests.serving.page.page_driver import PageDriver, missing_program, needs_curl, run  # noqa: E402
from tests.serving.running_server import RunningServer, run_server  # noqa: E402

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")

LABELS = ["tench", "church", "<b>chain</b> saw", "golf ball", "parachute", "gas pump", "French horn"]


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A running server with the bundles `seven`, of seven classes and the default, and `three`."""
    folder = tmp_path_factory.mktemp("page")
    seven = make_bundle(folder / "seven", name="seven", classes=LABELS)
    three = make_bundle(folder / "three", name="three", classes=("x", "y", "z"))
    with run_server(folder, {"CONVMAE_BUNDLE": f"{seven}:{three}"}) as running:
        yield running


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colourful 200 x 120 photo whose name must be quoted in a shell and would be markup in a page."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photos") / "it's <i>one<.png"
    Image.fromarray(pixels).resize((200, 120), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notes") / "note.txt"
    path.write_text("this is no photo")
    return path


def shown_predictions(page: PageDriver) -> list[tuple[str, float]]:
    labels, scores = page.texts("#ranking .label"), page.texts("#ranking .score")
    return [(label, float(score.rstrip(" %"))) for label, score in zip(labels, scores, strict=True)]


def test_a_photo_gives_the_servers_top_five_in_descending_order(
    page_server: RunningServer, page: PageDriver, photo: Path
) -> None:
    page.open()
    page.wait_for_model()
    page.pick(photo)

    expected = page_server.request("/v1/classify?top_k=5", photo.read_bytes()).json()
    shown = shown_predictions(page)
    assert [label for label, _ in shown] == [prediction["label"] for prediction in expected]
    assert [score for _, score in shown] == pytest.approx([100 * p["score"] for p in expected], abs=0.051)
    assert [score for _, score in shown] == sorted((score for _, score in shown), reverse=True)
    widths = page.script("return [...document.querySelectorAll('.fill')].map((fill) => parseFloat(fill.style.width))")
    assert widths == pytest.approx([100 * p["score"] for p in expected], abs=1e-3)
    assert expected[0]["label"] in page.content("[role=status]")
    assert "inference" in page.one("#timing").text


def test_a_photo_gives_four_feature_pictures_with_their_strides_and_shapes(page: PageDriver, photo: Path) -> None:
    page.open()
    page.pick(photo)

    assert page.script(
        "return [...document.querySelectorAll('canvas')].map((c) => [c.dataset.level, c.width, c.height])"
    ) == [
        ["e1", 16, 16],
        ["e2", 8, 8],
        ["e3", 4, 4],
        ["e4", 2, 2],
    ]
    captions = page.texts("figcaption")
    for caption, stride, shape in zip(
        captions, (4, 8, 16, 32), ("4 × 16 × 16", "6 × 8 × 8", "8 × 4 × 4", "8 × 2 × 2"), strict=True
    ):
        assert f"stride {stride}" in caption and shape in caption
    colours = page.script("""return [...document.querySelectorAll("canvas")].map((canvas) => {
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(new Uint32Array(pixels.buffer)).size; })""")
    assert colours[0] > 100 and all(count >= 4 for count in colours)
    assert page.script("return getComputedStyle(document.querySelector('canvas')).imageRendering") == "pixelated"


@pytest.mark.parametrize(
    "event", ["new DragEvent('drop', {dataTransfer: carried})", "new ClipboardEvent('paste', {clipboardData: carried})"]
)
def test_a_photo_can_also_be_dropped_or_pasted(page: PageDriver, photo: Path, event: str) -> None:
    page.open()
    page.wait_for_model()
    content = base64.b64encode(photo.read_bytes()).decode()
    carry = f"""const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], "carried.png", {{type: "image/png"}}));
        window.dispatchEvent({event});"""
    page.script(carry, content)
    page.wait_for_state("done")

    assert len(shown_predictions(page)) == 5
    assert "carried.png" in page.one("#crop-note").text


def test_a_dropped_link_is_refused_with_a_sentence(page: PageDriver) -> None:
    page.open()
    page.wait_for_model()
    page.script("window.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
    page.wait_for_state("error")
    assert "not a file" in page.one("[role=alert]").text


def test_the_part_of_the_photo_that_the_model_sees_is_marked(page: PageDriver, photo: Path) -> None:
    page.open()
    page.wait_for_model()
    page.pick(photo)
    page.wait(lambda: page.one("#crop").is_displayed(), "the crop")

    # The manifest resizes the short side to 73 and crops 64: 64/73 of the height, and as many pixels of the width.
    high = 64 / 73
    expected = {"left": 50 - 50 * high * 0.6, "top": 50 - 50 * high, "width": 100 * high * 0.6, "height": 100 * high}
    style = page.script("const {left, top, width, height} = crop.style; return {left, top, width, height}")
    assert {side: float(share.rstrip("%")) for side, share in style.items()} == pytest.approx(expected, abs=0.01)


def test_a_text_file_shows_the_servers_sentence_and_a_photo_recovers(
    page_server: RunningServer, page: PageDriver, photo: Path, text_file: Path
) -> None:
    page.open()
    assert page.one("[role=alert]").text == ""
    page.pick(text_file, "error")

    refusal = page_server.request("/v1/classify", text_file.read_bytes(), {"Content-Type": "text/plain"})
    error = refusal.json()["error"]
    assert page.one("[role=alert] strong").text == "This file is not a photo."
    small_print = page.one("[role=alert] .small-print").text
    assert f"400 {error['code']}" in small_print and error["message"] in small_print
    assert re.search(r"request [0-9a-f]{32} ", small_print)
    assert not page.one("#predictions").is_displayed() and not page.one("#photo-frame").is_displayed()

    page.pick(photo)
    assert page.one("[role=alert]").text == "" and not page.one("[role=alert]").is_displayed()
    assert len(shown_predictions(page)) == 5


def test_names_of_files_and_classes_are_shown_as_text(page: PageDriver, photo: Path) -> None:
    page.open()
    page.pick(photo)
    page.wait(lambda: photo.name in page.one("#crop-note").text, "the photo's name")

    assert page.script("return document.querySelectorAll('main i, main b').length") == 0
    assert "<b>chain</b> saw" in page.script("return [...classes.children].map((item) => item.textContent)")
    quoted = "--data-binary '@it'\\''s <i>one<.png'"
    assert all(quoted in command for command in page.texts(".command code"))


@needs_curl
def test_the_commands_on_the_page_give_what_the_page_shows(page: PageDriver, photo: Path) -> None:
    page.open()
    page.pick(photo)
    classes, why, features = page.texts(".command code")

    assert [prediction["label"] for prediction in json.loads(run(classes, photo.parent))] == page.texts(
        "#ranking .label"
    )
    assert run(features, photo.parent) == b"" and run(why, photo.parent) == b""
    with Image.open(photo.parent / "why.png") as picture:
        assert picture.format == "PNG" and picture.width >= 200
    maps = safetensors.numpy.load_file(photo.parent / "features.safetensors")
    assert {name: values.shape for name, values in maps.items()} == {
        "e1": (1, 4, 16, 16),
        "e2": (1, 6, 8, 8),
        "e3": (1, 8, 4, 4),
        "e4": (1, 8, 2, 2),
    }


def test_another_model_answers_when_it_is_chosen_and_top_five_is_capped_to_its_classes(
    page: PageDriver, photo: Path
) -> None:
    page.open()
    page.wait_for_model()
    assert "seven" in page.one("footer").text
    page.pick(photo)
    Select(page.one("#model")).select_by_visible_text("three")
    page.wait(lambda: len(page.texts("#ranking .score")) == 3, "three predictions")
    page.wait_for_state("done")

    assert {label for label, _ in shown_predictions(page)} == {"x", "y", "z"}
    assert "three" in page.one("footer").text and "test weights" in page.one("footer").text
    assert all("model=three" in command for command in page.texts(".command code"))
    assert page.one("footer a").get_attribute("href") == f"{page.origin}/docs"


def test_a_new_photo_aborts_the_request_in_flight(page: PageDriver, photo: Path) -> None:
    never = """
        window.aborted = [];
        const real = window.fetch;
        let held = 0;
        window.fetch = (url, options = {}) => {
          if (!options.body || held++ >= 2) return real(url, options);
          return new Promise((_, reject) => options.signal.addEventListener("abort", () => {
            window.aborted.push(url);
            reject(options.signal.reason);
          }));
        };"""
    page.open(script=never)
    page.wait_for_model()
    page.one("#photo").send_keys(str(photo))
    page.wait_for_state("working")
    page.wait(lambda: page.texts("#ranking .pending") != [], "placeholders")
    page.pick(photo)

    assert len(page.script("return window.aborted")) == 2
    assert len(shown_predictions(page)) == 5


def test_a_server_with_a_key_is_asked_with_the_key_and_forgets_it_on_reload(page: PageDriver, photo: Path) -> None:
    guarded = """
        const real = window.fetch;
        window.fetch = (url, options = {}) => {
          if (options.headers?.Authorization === "Bearer secret") return real(url, options);
          const error = {code: "unauthorized", message: "expected the API key, got another one"};
          return Promise.resolve(new Response(JSON.stringify({error}), {status: 401}));
        };"""
    page.open(script=guarded)
    page.wait(lambda: page.one("#key-form").is_displayed(), "the key's field")
    assert page.one("[role=alert]").text == ""
    page.press("wrong", Keys.ENTER)
    page.wait_for_state("error")
    assert page.one("[role=alert] strong").text == "This key was not accepted."
    assert "expected the API key, got another one" in page.one("[role=alert] .small-print").text

    page.press("secret", Keys.ENTER)
    page.wait_for_model()
    page.pick(photo)
    assert not page.one("#key-form").is_displayed() and len(shown_predictions(page)) == 5
    commands = " ".join(page.texts(".command code"))
    assert '"Authorization: Bearer $CONVMAE_API_KEY"' in commands and "secret" not in commands
    assert page.script("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_the_keyboard_alone_reaches_everything_and_the_focus_is_visible(page: PageDriver, photo: Path) -> None:
    page.open()
    page.wait_for_model()
    visited = [page.press(Keys.TAB) for _ in range(5)]
    assert [stop.get_attribute("id") or stop.text for stop in visited] == [
        "ConvMAE",
        "Try it",
        "API",
        "model",
        "photo",
    ]
    assert page.script("return getComputedStyle(picker).outlineStyle") == "solid"

    # The dialogue itself is the browser's: it is kept shut here, and the file given the way selenium can.
    page.chrome.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
    page.script("window.dialogues = 0; photo.addEventListener('click', () => window.dialogues++)")
    page.press(Keys.ENTER)
    page.press(Keys.SPACE)
    assert page.script("return window.dialogues") == 2
    page.chrome.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": False})
    assert [page.press(Keys.TAB).get_attribute("class") for _ in range(5)] == ["sample"] * 5
    page.press(Keys.ENTER)
    page.wait_for_state("done")
    assert "street.jpg, 480 × 360" in page.one("#crop-note").text


def test_the_same_call_is_there_in_four_ways_as_tabs_that_the_arrow_keys_move_between(
    page: PageDriver, photo: Path
) -> None:
    page.open()
    page.pick(photo)
    page.script("document.querySelector('[role=tab]').focus()")

    def selected() -> list[str]:
        return page.texts("[role=tab][aria-selected=true]")

    assert selected() == ["curl"] and page.texts("[role=tab]") == ["curl", "Python", "Hugging Face", "JavaScript"]
    for key, title, word in (
        (Keys.ARROW_RIGHT, "Python", "urlopen"),
        (Keys.END, "JavaScript", "await fetch"),
        (Keys.ARROW_RIGHT, "curl", "curl -s"),
        (Keys.ARROW_LEFT, "JavaScript", "await fetch"),
        (Keys.HOME, "curl", "curl -s"),
        (Keys.ARROW_RIGHT, "Python", "urlopen"),
    ):
        assert page.press(key).text == title and selected() == [title]
        assert all(word in command for command in page.texts("[role=tabpanel] .command code"))
        panel = page.one("[role=tabpanel]")
        assert page.one(f"[id='{panel.get_attribute('aria-labelledby')}']").text == title
    copy = page.press(Keys.TAB)  # past the other tabs, into the panel
    assert copy.get_attribute("aria-label") == "Copy: Classes"
    page.press(Keys.ENTER)
    page.wait(lambda: copy.text == "Copied", "the button to say that it copied")

    page.pick(photo)  # whoever has chosen a way keeps it
    assert selected() == ["Python"]


def test_the_programs_on_the_page_give_what_the_page_shows(page: PageDriver, photo: Path) -> None:
    page.open()
    page.pick(photo)
    labels = page.texts("#ranking .label")
    _, python, hugging_face, javascript = page.chrome.find_elements("css selector", "[role=tab]")

    python.click()
    classes, why, features = (
        run(shlex.join([sys.executable, "-c", program]), photo.parent) for program in page.texts(".command code")
    )
    assert [prediction["label"] for prediction in json.loads(classes.decode().replace("'", '"'))] == labels
    assert (why, features) == (b"", b"") and safetensors.numpy.load_file(
        photo.parent / "features.safetensors"
    ).keys() == {
        "e1",
        "e2",
        "e3",
        "e4",
    }
    hugging_face.click()
    (program,) = page.texts(".command code")
    printed = run(shlex.join([sys.executable, "-c", program]), photo.parent).decode()
    assert re.findall("label='([^']+)'", printed) == labels
    assert "no method for this: why the likeliest, as a picture, feature levels." in page.one("[role=tabpanel]").text
    javascript.click()
    give = """const given = new DataTransfer(), done = arguments[2];
        const bytes = Uint8Array.from(atob(arguments[1]), (character) => character.charCodeAt(0));
        given.items.add(new File([bytes], "a.png"));
        document.querySelector("#photo").files = given.files;
        const run = new Function(`return (async () => {${arguments[0].replace("console.log(", "return (")}})()`);
        run().then(done, (error) => done(`failed: ${error}`));"""
    program = page.texts(".command code")[0]
    found = page.chrome.execute_async_script(give, program, base64.b64encode(photo.read_bytes()).decode())
    assert [prediction["label"] for prediction in found] == labels


def test_a_sample_shows_something_at_once_and_its_terms_stand_beside_it(page: PageDriver) -> None:
    page.open()
    page.wait_for_model()
    pictures = page.script(
        "return [...document.querySelectorAll('.sample img')].map((p) => [p.alt, p.complete && p.naturalWidth > 300])"
    )
    assert len(pictures) == 5 and all(alt and loaded for alt, loaded in pictures)
    terms = page.one(".credits").text
    for words in (
        "project, MIT",
        "Stefan van der Walt, CC0",
        "Rachel Michetti, CC0",
        "no known copyright",
        "Apache-2.0",
    ):
        assert words in terms
    page.one(".sample").click()
    page.wait_for_state("done")
    assert "golf-ball.jpg, 384 × 384" in page.one("#crop-note").text and len(shown_predictions(page)) == 5
    assert all("@golf-ball.jpg" in command for command in page.texts(".command code"))


def test_what_the_model_knows_stands_beside_what_it_says(page: PageDriver, photo: Path) -> None:
    page.open()
    page.pick(photo)
    assert page.one("#knows").text == (
        "The model knows 7 classes: tench, church, <b>chain</b> saw, golf ball, parachute, gas pump, French horn. "
        "Whatever the photo shows, it chooses among these."
    )


@pytest.mark.parametrize(
    ("status", "code", "headers", "what", "advice", "again"),
    [
        (413, "body_too_large", {}, "This photo is too large for the server.", "Choose a smaller file.", False),
        (413, None, {}, "This photo is too large for the server.", "Choose a smaller file.", False),  # of a proxy
        (415, "unsupported_format", {}, "The server cannot read this kind of photo.", "Save it as JPEG, PNG", False),
        (429, None, {"Retry-After": "7"}, "Too many requests", "Try again in 7 seconds.", True),
        (503, "overloaded", {"Retry-After": "1"}, "The server is busy.", "Try again in 1 second.", True),
        (502, None, {}, "The server behind this address does not answer.", "It may be restarting.", True),
        (0, None, {}, "The server did not answer.", "the connection is down", True),
        (422, "odd_code", {}, "the server's own sentence", "", False),
    ],
)
def test_an_error_says_what_happened_and_what_to_do_and_keeps_its_number(
    page: PageDriver, photo: Path, status: int, code: str | None, headers: dict[str, str], what: str, advice: str,
    again: bool,
) -> None:  # fmt: skip
    body = json.dumps({"error": {"code": code, "message": "the server's own sentence"}}) if code else "<h1>no</h1>"
    answer = {"status": status, "headers": headers | {"X-Request-Id": "abc123"}}
    failing = f"""const real = window.fetch;
        window.failing = true;
        window.fetch = (url, options = {{}}) => !options.body || !window.failing ? real(url, options)
            : {status} ? Promise.resolve(new Response({json.dumps(body)}, {json.dumps(answer)}))
            : Promise.reject(new TypeError("no network"));"""
    page.open(script=failing)
    page.wait_for_model()
    page.pick(photo, "error")
    assert page.one("[role=alert] strong").text.startswith(what) and advice in page.one("[role=alert]").text
    if status:
        assert "request abc123" in page.one(".small-print").text and str(status) in page.one(".small-print").text
    assert len(page.texts("[role=alert] button")) == again
    if again:
        page.script("window.failing = false")
        page.one("[role=alert] button").click()
        page.wait_for_state("done")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_scrolls_sideways_at_the_width_of_a_phone(page: PageDriver, photo: Path, path: str) -> None:
    page.open(path, width=360)
    if path == "/":
        page.pick(photo)
        page.one(".why").click()
        page.wait(lambda: page.texts("#overlay .contributions"), "the explanation")
    else:
        page.wait(lambda: page.texts("[data-path]"), "the operations")

    width, inside, content = page.script(
        "const root = document.documentElement; return [innerWidth, root.clientWidth, root.scrollWidth]"
    )
    assert width == 360 and content <= inside
    wide = """const edge = document.documentElement.clientWidth;
        return [...document.querySelectorAll("main *")].filter((node) => !node.closest("pre, .crop") &&
            node.getBoundingClientRect().right > edge).map((node) => node.outerHTML.slice(0, 80))"""
    assert page.script(wide) == []


def test_dark_and_still_are_respected_where_the_user_prefers_them(page: PageDriver, photo: Path) -> None:
    def look() -> tuple[str, str]:
        page.open()
        page.pick(photo)
        return tuple(
            page.script("""return [getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector(".fill")).transitionProperty]""")
        )

    try:
        page.media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
        light, moving = look()
        page.media(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
        dark, still = look()
    finally:
        page.media()
    assert sum(map(int, light[4:-1].split(","))) > 600 and sum(map(int, dark[4:-1].split(","))) < 150
    assert (moving, still) == ("width", "none")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_no_request_leaves_the_origin_and_the_console_stays_clean(
    page_server: RunningServer, page: PageDriver, photo: Path, path: str
) -> None:
    page.open(path)
    if path == "/":
        page.pick(photo)
    else:
        page.wait(lambda: page.texts("[data-path]"), "the operations")

    requested = page.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(requested) >= 4
    assert [url for url in requested if not url.removeprefix("blob:").startswith(f"{page.origin}/")] == []
    assert page.console() == []
    policy = page_server.request(path).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


def test_the_reference_shows_every_operation_of_the_openapi_document(
    page_server: RunningServer, page: PageDriver
) -> None:
    page.open("/docs")
    page.wait(lambda: page.texts("[data-path]"), "the operations")
    document = page_server.request("/openapi.json").json()

    operations = {
        (path, method) for path, item in document["paths"].items() for method in item if method != "parameters"
    }
    shown = page.script(
        "return [...document.querySelectorAll('[data-path]')].map((s) => [s.dataset.path, s.dataset.method])"
    )
    assert {(path, method) for path, method in shown} == operations and len(shown) == len(operations)
    assert len(page.texts(".contents a")) == len(operations)
    text = page.one("main").text
    assert "[object" not in text and "undefined" not in text and "$ref" not in text
    classify = "[data-path='/v1/classify']"
    assert "top_k" in page.one(f"{classify} table").text
    assert f"curl -s --data-binary @photo.jpg {page.origin}/v1/classify" in page.texts(f"{classify} .command code")
    assert '"label"' in page.one(f"{classify} .answer[open]").text
