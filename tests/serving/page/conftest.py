"""A browser for each module of tests; every module says which server it looks at by a fixture `page_server`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.serving.running_server import RunningServer

if TYPE_CHECKING:
    from tests.serving.page.page_driver import PageDriver


@pytest.fixture(scope="module")
def page(page_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator["PageDriver"]:
    """A window on the server's page."""
    from tests.serving.page.page_driver import PageDriver  # needs selenium

    driver = PageDriver(page_server.url, tmp_path_factory.mktemp("profile"))
    yield driver
    driver.close()
