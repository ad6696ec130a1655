"""The hostile benchmark's verdicts, and that its files are the same every time."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.hostile import BODIES_BYTES, KEPT_BYTES, HostileConfig, Kind, faults_of, settings_of
from serving.settings import Settings
from tests.hostile.photos import PHOTOS
from tests.hostile.videos import VIDEOS

BEFORE = 200_000_000
CONFIG = HostileConfig()
MOST = CONFIG.decoding_bytes + BODIES_BYTES


@pytest.mark.parametrize(
    ("statuses", "peak", "after", "words"),
    [
        ({"200": 3, "400": 2, "413": 1, "415": 1, "422": 1}, BEFORE + MOST, BEFORE + KEPT_BYTES, None),
        ({"200": 3, "500": 2}, BEFORE, BEFORE, "answered 500"),
        ({"504": 1}, BEFORE, BEFORE, "answered 504"),
        ({"ConnectionResetError": 1}, BEFORE, BEFORE, "answered ConnectionResetError"),
        ({"413": 1}, BEFORE + MOST + 1, BEFORE, "more than before"),
        ({"413": 1}, BEFORE, BEFORE + KEPT_BYTES + 1, "are kept"),
    ],
)
def test_memory_beyond_its_bound_memory_that_stays_and_answers_of_5xx_are_faults(
    statuses: dict[str, int], peak: int, after: int, words: str | None
) -> None:
    kind = Kind("bomb", 10, Counter(statuses), 1.0, peak, after)
    faults = faults_of(kind, BEFORE, CONFIG)
    assert len(faults) == (words is not None)
    assert words is None or words in faults[0] and "bomb" in faults[0]


@pytest.mark.parametrize(
    "name",
    ["PNG with texts of 6 GB", "BMP of 49 megapixels in runs", "GIF of 75,000 comments", "TIFF in tiles of 2 GB"],
)
def test_a_photo_is_the_same_every_time(name: str) -> None:
    assert PHOTOS[name]() == PHOTOS[name]()


@pytest.mark.parametrize("name", ["Matroska of one block of 1 GB", "MP4 with wrong bytes", "MP4 that says 2^31 frames"])
def test_a_video_is_the_same_every_time(name: str) -> None:
    assert VIDEOS[name]() == VIDEOS[name]()


def test_the_server_gets_the_bounds_that_it_is_held_to() -> None:
    given = {name.removeprefix("CONVMAE_").lower(): value for name, value in settings_of(CONFIG, Path("video")).items()}
    assert set(given) <= set(Settings.model_fields)
    assert given["max_decoding_bytes"] == str(CONFIG.decoding_bytes)
