"""Videos that are made to cost much: each is refused, or decoded within the memory that a video may take."""

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.media.video_errors import VideoError
from convmae_deploy.media.video_formats import CODECS
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.clips import ClipViews
from serving.work.pool import Ticket
from serving.work.video_process import VideoProcesses
from tests.hostile import videos
from tests.hostile.bounds import MEGABYTE, bounded
from tests.hostile.decoding import decode_video
from tests.video_files import make_video

pytestmark = pytest.mark.slow  # together

SAMPLING = ClipPreprocessing(resize=(64, 64), crop=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
LIMITS = VideoLimits(max_bytes=50_000_000, decoding_seconds=1000.0)
MEMORY = 150_000_000
KEPT = 30 * MEGABYTE

# What each is answered by processes that may take 150 MB.
HOSTILE: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "compressed blocks": (lambda: videos.compressed_blocks(100), {"video_too_large"}),
    "a block of many compressed frames": (
        lambda: videos.laced_blocks(60),
        {"video_too_large", "decoding_too_large"},
    ),
    "headers left out": (lambda: videos.stripped_headers(500, 1_000_000), {"video_too_large"}),
    "headers left out of one block": (  # takes 123 MB, which leaves less than a large picture's room
        lambda: videos.stripped_headers(1, 40_000_000),
        {"video_corrupt", "decoding_too_large"},
    ),
    "a million tracks": (
        lambda: videos.many_elements(0xAE, b"", 0x1654AE6B),
        {"video_corrupt", "decoding_too_large"},
    ),
    "a million tags": (lambda: videos.many_elements(0x7373, b"", 0x1254C367), {"video_corrupt"}),
    "a million index entries": (lambda: videos.many_elements(0xBB, b"", 0x1C53BB6B), {"video_corrupt"}),
    "large tags and attachments": (videos.huge_attachments, {"video_corrupt"}),
    "many large tracks": (lambda: videos.many_tracks(30), {"decoding_too_large"}),
    "2^31 frames of equal size": (lambda: videos.samples_of_equal_size(0x7FFFFFFF), {"video_truncated"}),
    "15 million frames of equal size": (
        lambda: videos.samples_of_equal_size(15_000_000),
        {"video_truncated"},
    ),
    "a run of 15 million frames": (lambda: videos.fragment_of_samples(15_000_000), {"video_truncated"}),
    "edit lists": (lambda: videos.edit_lists(20_000, 1000), {"video_too_long", "decoding_too_large"}),
    "index of indexes": (lambda: videos.index_of_indexes(300_000), {"video_truncated", "decoding_too_large"}),
    "a codec that is not let in": (
        lambda: make_video("avi", codec="cinepak", pixels="rgb24"),
        {"unsupported_format"},
    ),
    "cut off": (lambda: videos.cut("matroska", "libx264", frames=100), {"video_truncated"}),
}
# WebM of 48 x 32 pixels whose first frame says 3983 x 61472
TALL_FRAME = base64.b64decode(
    "GkXfo59ChoEBQveBAULygQRC84EIQoKEAAAAAEKHgQJGhYEAABZUrmu+rgEAAAAAAAAw14EBxYgAAAAAAAAAAIiBAIaFVl9WUDmDgQEfQ7Z1QLvngQCj"
    "z4EAAACCSYNCAPjvAfYAOCQcEEIAADAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)


@pytest.fixture(scope="module")
def processes() -> Iterator[VideoProcesses]:
    processes = VideoProcesses()
    yield processes
    processes.close()


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_video_that_is_made_to_cost_much_is_refused_and_leaves_nothing(name: str, processes: VideoProcesses) -> None:
    make, codes = HOSTILE[name]
    if "decoding_too_large" in codes:  # a decoder that gets no more memory may also end without a word
        codes = codes | {"video_corrupt"}
    data = make()
    before = resident()
    for _ in range(2):
        with pytest.raises(VideoError) as caught:
            processes.decode(data, SAMPLING, ClipViews(), LIMITS, memory=MEMORY, job=Ticket())
        assert caught.value.code in codes, str(caught.value)
        assert "\n" not in str(caught.value)
    assert resident() - before < KEPT
    good = make_video()
    assert processes.decode(good, SAMPLING, ClipViews(), LIMITS, memory=MEMORY, job=Ticket()).frames == 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: videos.compressed_blocks(100),
        lambda: videos.stripped_headers(500, 1_000_000),
        lambda: videos.frames_that_grow(),
        lambda: TALL_FRAME,
        lambda: videos.samples_of_equal_size(60_000_000),
        lambda: videos.fragment_of_samples(15_000_000),
    ],
    ids=[
        "compressed blocks",
        "headers left out",
        "frames that grow",
        "first frame of 245 megapixels",
        "60 million frames of equal size",
        "a run of 15 million frames",
    ],
)
def test_also_without_a_process_of_its_own_it_is_refused_before_it_takes_much(make: Callable[[], bytes]) -> None:
    ending = bounded(decode_video, make(), memory=400 * MEGABYTE)
    assert ending.how == "refused", ending
    assert ending.grown < 70 * MEGABYTE


def test_a_codec_that_is_not_let_in_is_refused_before_a_decoder_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {"cinepak", "png", "tiff", "huffyuv", "indeo3", "aac"} & set(CODECS)
    ending = bounded(decode_video, make_video("avi", codec="cinepak", pixels="rgb24"))
    assert ending.how == "refused" and "found video in cinepak, accepted are H.264, HEVC" in ending.sentence


def test_the_references_of_the_largest_frames_fit_into_what_a_video_may_take(processes: VideoProcesses) -> None:
    data = videos.references("yuv420p", size=(1152, 2048))  # a quarter of the largest
    quarter = VideoLimits(decoding_seconds=1000.0)
    decoded = processes.decode(data, SAMPLING, ClipViews(), quarter, memory=250_000_000, job=Ticket())
    assert decoded.frames == 24
