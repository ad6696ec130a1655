"""What a manifest must say, whatever its task."""

import pytest
from pydantic import ValidationError

from convmae_deploy.bundle.manifest import SlidingWindow, standard_windows


def test_windows_that_leave_pixels_out_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be at most the window"):
        SlidingWindow(window=(64, 64), stride=(64, 65))


def test_the_standard_windows_are_the_authors() -> None:
    assert standard_windows((512, 512), 512) == SlidingWindow(window=(512, 512), stride=(341, 341), short_side=512)
    assert standard_windows((96, 160), None).stride == (64, 106)
