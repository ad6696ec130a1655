"""The page behind a proxy that gives the server a path of its own, in a headless Chromium."""

import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.sample_images import jpeg

pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")

from tests.serving.page.page_driver import PageDriver, missing_program, needs_curl, run  # noqa: E402
from tests.serving.running_server import RunningServer  # noqa: E402

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=missing_program() or "")

PREFIX = "/tools/convmae"


@pytest.fixture(scope="module")
def proxy(server: RunningServer) -> Iterator[str]:
    """Where a proxy takes `PREFIX` away and answers everything else with 404."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{PREFIX}/"):
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) if self.command == "POST" else None
            passed = {name: value for name, value in self.headers.items() if name in ("Accept", "Content-Type")}
            url = server.url + self.path.removeprefix(PREFIX)
            with urllib.request.urlopen(urllib.request.Request(url, body, passed)) as answer:
                content = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Security-Policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the requests of a test are no news."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.fixture(scope="module")
def page(proxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageDriver]:
    driver = PageDriver(proxy, tmp_path_factory.mktemp("profile"))
    yield driver
    driver.close()


@needs_curl
def test_page_and_reference_stay_below_the_path_and_so_do_their_commands(page: PageDriver, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(jpeg())
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    page.open(f"{PREFIX}/")
    page.wait_for_model()
    page.script("document.querySelectorAll('.sample')[1].click()")
    page.wait_for_state("done")
    assert len(page.texts("#ranking .score")) == 3 and len(page.texts("figcaption")) == 4
    base = f"{page.origin}{PREFIX}/"
    commands = page.texts(".command code")
    assert all(base in command for command in commands)
    assert {prediction["label"] for prediction in json.loads(run(commands[0], tmp_path))} == {"a", "b", "c"}
    assert page.console() == []

    page.one("footer a").click()
    page.wait(lambda: page.texts("[data-path]"), "the operations")
    assert page.chrome.current_url == f"{base}docs"
    command = page.texts("[data-path='/v1/classify'] .command code")[0]
    assert {prediction["label"] for prediction in json.loads(run(command, tmp_path))} == {"a", "b", "c"}
    assert page.console() == []
    requested = page.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(requested) >= 4 and all(url.startswith(base) for url in requested)
    page.one(".brand").click()
    page.wait_for_model()
    assert page.chrome.current_url == base
