"""A headless Chromium that looks at the page as a user does; needs Debian's `chromium` and `chromium-driver`."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.waiting import PATIENCE_SECONDS

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def missing_program() -> str | None:
    """Which of the two programs is not installed, in words; None when both are."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install chromium chromium-driver"
    return None


def run(command: str, folder: Path) -> bytes:
    """What a command copied from the page prints, started in `folder`."""
    return subprocess.run(
        command, shell=True, cwd=folder, stdout=subprocess.PIPE, check=True, timeout=PATIENCE_SECONDS
    ).stdout


class PageDriver:
    """One browser window on the page.

    Args:
        origin: scheme, host and port of the running server.
        profile: an empty folder for the browser's profile.
    """

    def __init__(self, origin: str, profile: Path) -> None:
        options = Options()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # Both paths given: selenium then has nothing to look for, let alone to download.
        self.chrome = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
        self.chrome.set_script_timeout(PATIENCE_SECONDS)
        self.origin = origin
        self._scripts: list[str] = []

    def open(self, path: str = "/", *, width: int = 1280, script: str | None = None) -> None:
        """Loads `path` in a window of that width, with the last page's leftovers gone.

        Args:
            path: of the page, from the origin.
            width: of the viewport in CSS pixels.
            script: JavaScript to run before the page's own.
        """
        for identifier in self._scripts:
            self.chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": identifier})
        self._scripts.clear()
        if script is not None:
            added = self.chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
            self._scripts.append(added["identifier"])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.chrome.get("about:blank")
        self.console()
        self.chrome.get(self.origin + path)

    def media(self, **features: str) -> None:
        """Pretends that the user prefers something: prefers_color_scheme="dark"; no argument takes it all back."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})

    def close(self) -> None:
        """Ends the browser."""
        self.chrome.quit()

    def one(self, selector: str) -> WebElement:
        """The first element that matches a CSS selector."""
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The visible text of every match."""
        # In one call: elements fetched one by one may be gone before they are read.
        read = "return Array.from(document.querySelectorAll(arguments[0]), (match) => match.innerText)"
        found: list[str] = self.script(read, selector)
        return [text.strip() for text in found]

    def content(self, selector: str) -> str:
        """The text of the first match, as written and even where it is not visible."""
        return self.one(selector).get_attribute("textContent") or ""

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Waits until `condition` is true; `what` says what was waited for when it never is."""
        WebDriverWait(self.chrome, PATIENCE_SECONDS, poll_frequency=0.05).until(
            lambda _: condition(), f"waited for {what}"
        )

    def wait_for_state(self, state: str) -> None:
        """Waits until the page is idle, working, done or in error."""
        self.wait(lambda: self.one("body").get_attribute("data-state") == state, f"the state {state}")

    def choose_model(self, name: str, width: int = 1280) -> None:
        """Loads the page in a window of that width and chooses a model by its name."""
        self.open(width=width)
        self.wait_for_model()
        Select(self.one("#model")).select_by_value(name)
        self.wait(lambda: name in self.one("footer").text, f"the model {name}")

    def wait_for_model(self) -> None:
        """Waits until the page knows which model it asks."""
        self.wait(lambda: self.one("#about").is_displayed(), "the model's facts")

    def pick(self, path: Path, state: str = "done") -> None:
        """Picks a file, as its file dialogue would, and waits for the outcome."""
        self.one("#photo").send_keys(str(path))
        self.wait_for_state(state)

    def press(self, *keys: str) -> WebElement:
        """Presses keys wherever the focus is, and returns what has it afterwards."""
        ActionChains(self.chrome).send_keys(*keys).perform()
        focused: WebElement = self.chrome.switch_to.active_element
        return focused

    def script(self, body: str, *arguments: Any) -> Any:
        """The value that a synchronous JavaScript body returns."""
        return self.chrome.execute_script(body, *arguments)

    def module(self, name: str, body: str, *arguments: Any) -> Any:
        """The value that `body` returns with the page's module `name` at hand as `module` and arguments as `given`."""
        wrapped = f"""
            const given = [...arguments], done = given.pop();
            import("/page/{name}").then((module) => {{ {body} }}).then(done, (error) => done(`failed: ${{error}}`));"""
        return self.chrome.execute_async_script(wrapped, *arguments)

    def console(self) -> list[str]:
        """Errors and warnings in the browser's console since the last call."""
        entries: list[dict[str, Any]] = self.chrome.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]
