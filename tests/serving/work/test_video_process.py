"""Processes that decode one video each: what they are given, what they may take, and how they end."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.media.video_errors import VideoError
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.clips import ClipViews, read_clips
from serving.errors import ClientGone
from serving.work import video_process
from serving.work.pool import Ticket
from serving.work.video_process import DecodedVideo, VideoProcesses, video_processes
from tests.serving.misbehaving_worker import video_that
from tests.video_files import make_audio, make_video

SAMPLING = ClipPreprocessing(resize=(64, 64), crop=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
VIDEO = make_video()
MEMORY = 500_000_000


def decode(
    data: bytes = VIDEO,
    processes: VideoProcesses | None = None,
    *,
    views: ClipViews | None = None,
    limits: VideoLimits | None = None,
    memory: int = MEMORY,
    job: Ticket | None = None,
) -> DecodedVideo:
    return (processes or video_processes()).decode(
        data, SAMPLING, views or ClipViews(), limits or VideoLimits(), memory=memory, job=job or Ticket()
    )


def refusal(data: bytes, processes: VideoProcesses | None = None, **options: object) -> tuple[str, str]:
    with pytest.raises(VideoError) as caught:
        decode(data, processes, **options)  # type: ignore[arg-type]
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("views", [ClipViews(), ClipViews(temporal=2, spatial=3)], ids=["one view", "six views"])
def test_clips_are_those_that_this_process_would_decode(views: ClipViews) -> None:
    decoded = decode(views=views)
    assert np.array_equal(decoded.clips, read_clips(VIDEO, SAMPLING, views=views))
    assert decoded.frames == 20 and decoded.seconds == pytest.approx(0.8)


def test_why_a_video_is_refused_is_told() -> None:
    assert refusal(make_audio())[0] == "no_video_stream"
    assert refusal(VIDEO, limits=VideoLimits(max_frames=19)) == (
        "video_too_long",
        "the video has 20 frames or more, at most 19 are accepted; send a part of it",
    )


@pytest.mark.slow
@pytest.mark.parametrize("memory", [100_000, 1_000_000, 5_000_000])
def test_a_video_that_needs_more_memory_than_it_may_take_is_refused(memory: int) -> None:
    data = make_video(size=(720, 1280), frames=10)
    code, message = refusal(data, memory=memory)
    assert code == "decoding_too_large" and f"more than {memory} bytes" in message
    assert decode(data).frames == 10


@pytest.mark.slow
def test_memory_that_a_file_asks_for_in_vain_is_not_given(misbehaving: VideoProcesses) -> None:
    assert refusal(video_that("takes all memory"), misbehaving)[0] == "decoding_too_large"


def test_a_decoder_that_crashes_takes_nothing_else_with_it(misbehaving: VideoProcesses) -> None:
    for _ in range(2):
        code, message = refusal(video_that("aborts"), misbehaving)
        assert code == "video_corrupt" and "send an intact file" in message


def test_a_fault_of_our_own_is_no_fault_of_the_video(misbehaving: VideoProcesses) -> None:
    with pytest.raises(RuntimeError, match="failed"):
        decode(video_that("raises"), misbehaving)


def test_a_video_that_is_never_decoded_ends_with_its_time(
    misbehaving: VideoProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_process, "GRACE_SECONDS", 0.01)
    code, message = refusal(video_that("never ends"), misbehaving, limits=VideoLimits(decoding_seconds=0.05))
    assert code == "decoding_too_slow" and "0.05 seconds" in message


def test_the_process_ends_when_nobody_waits_for_the_video_any_more(misbehaving: VideoProcesses, tmp_path: Path) -> None:
    told = tmp_path / "pipe"
    os.mkfifo(told)
    job, gone = Ticket(), threading.Event()

    def wait() -> None:
        with pytest.raises(ClientGone):
            decode(video_that("never ends", told), misbehaving, job=job)
        gone.set()

    thread = threading.Thread(target=wait)
    thread.start()
    with told.open("rb") as pipe:  # opens once the process has
        job.abandon()
        assert pipe.read() == b""  # ends once the process has
    thread.join()
    assert gone.is_set()


@pytest.mark.slow
def test_when_the_process_that_is_copied_has_ended_there_is_a_new_one() -> None:
    processes = VideoProcesses()
    assert decode(processes=processes).frames == 20
    first = processes._process
    assert first is not None
    first.kill()
    first.wait()
    assert decode(processes=processes).frames == 20
    processes.close()


@pytest.mark.slow
def test_signals_that_end_the_server_leave_its_processes_to_it() -> None:
    processes = VideoProcesses()
    decode(processes=processes)
    process = processes._process
    assert process is not None
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert decode(processes=processes).frames == 20
    processes.close()
    assert process.returncode == 0


def test_a_process_that_does_not_start_is_a_sentence() -> None:
    with pytest.raises(RuntimeError, match="does not start"):
        decode(processes=VideoProcesses("serving.nothing_of_that_name"))
