"""Videos: the right frames, upright, in the right order, and a sentence for everything else."""

import gc
import os
import random
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import VideoError, VideoErrorCode, VideoLimits, open_video
from tests.video_files import CODECS, make_audio, make_gif, make_video, number_of, with_matroska_seconds
from tests.video_packs import ASL20, needs_asl20

FASTSTART = {"movflags": "faststart"}  # the index in front, so that a file cut off can be opened


def numbers(data: bytes, wanted: list[int], count: int = 20) -> list[int]:
    with open_video(data) as video:
        return [number_of(frame, count) for frame in video.frames(wanted)]


def refusal(source: bytes | Path, **limits: float) -> tuple[VideoErrorCode, str]:
    with pytest.raises(VideoError) as caught:
        with open_video(source, limits=VideoLimits(**limits)) as video:  # type: ignore[arg-type]
            list(video.frames(range(len(video))))
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("container", CODECS)
def test_frames_come_in_the_order_they_are_shown_in(container: str) -> None:
    data = make_video(container)
    with open_video(data) as video:
        assert len(video) == 20
        assert video.seconds == pytest.approx(0.8, abs=0.002)
        assert video.times == pytest.approx(np.arange(20) / 25, abs=0.002)
        assert [number_of(frame, 20) for frame in video.frames(range(20))] == list(range(20))
        assert [number_of(frame, 20) for frame in video.frames([17, 4, 4, 9])] == [4, 9, 17]
        assert next(video.frames([0])).shape == (48, 64, 3)


@pytest.mark.parametrize("dropped", [range(30, 31), range(20, 40), range(58, 59)])
def test_frames_that_an_avi_dropped_leave_the_one_before_on_screen(dropped: range) -> None:
    data = make_video("avi", frames=60, dropped=dropped, codec_options={"g": "1"})
    kept = [number for number in range(60) if number not in dropped]
    with open_video(data) as video:
        assert len(video) == len(kept) and video.seconds == pytest.approx(2.4)
        assert video.times == pytest.approx(np.array(kept) / 25)
        assert [number_of(frame, 60) for frame in video.frames(range(len(video)))] == kept
        moment = np.array([(dropped[0] + 0.5) / 60])
        assert video.on_screen(moment) == [kept.index(dropped[0] - 1)]


def test_a_header_that_counts_one_frame_too_many_is_believed_for_the_others() -> None:
    data = bytearray(make_video("avi", frames=60))
    length = data.index(b"strh") + 40
    assert data[length] == 60
    for count, is_whole in ((61, True), (64, False)):
        data[length] = count
        if is_whole:
            assert len(numbers(bytes(data), [*range(60)], 60)) == 60
        else:
            assert refusal(bytes(data)) == (
                "video_truncated",
                "the video is incomplete: its header promises 64 frames, it holds 60; send the whole file",
            )


def test_a_gif_of_several_pictures_is_a_video() -> None:
    with open_video(make_gif(12)) as video:
        assert len(video) == 12 and video.seconds == pytest.approx(1.2)
        assert [number_of(frame, 12) for frame in video.frames([0, 5, 11])] == [0, 5, 11]


@pytest.mark.parametrize("container", ["mp4", "webm", "matroska", "mov"])
def test_decoding_from_a_keyframe_gives_the_same_frames(container: str) -> None:
    options = {"x265-params": "log-level=none:keyint=10:min-keyint=10"} if container == "mov" else {"g": "10"}
    data = make_video(container, frames=100, codec_options=options)
    with open_video(data) as video:
        every = list(video.frames(range(100)))
        for wanted in ([3], [9, 10, 11], [55, 56, 90], [0, 99], [49, 51]):
            some = list(video.frames(wanted))
            assert all(np.array_equal(one, every[number]) for one, number in zip(some, wanted, strict=True))


def test_only_the_packets_a_frame_is_predicted_from_are_decoded() -> None:
    with open_video(make_video("mp4", frames=100, codec_options={"g": "10", "bf": "0", "sc_threshold": "0"})) as video:
        list(video.frames([57]))
        assert video.decoded == 8  # from keyframe 50 on


def test_a_frame_is_on_screen_from_its_time_on() -> None:
    with open_video(make_video()) as video:
        moments = np.array([0.0, 0.0499, 0.5, 0.999])  # of 0.8 seconds with a frame every 0.04
        assert video.on_screen(moments).tolist() == [0, 0, 10, 19]


def test_uneven_frames_are_found_by_their_times() -> None:
    shown = [0, 10, 20, 30, 40, 1000, 1500, 1510, 1900, 2000]
    with open_video(make_video("matroska", frames=10, milliseconds=shown)) as video:
        assert video.times.tolist() == pytest.approx([time / 1000 for time in shown])
        moments = np.array([[0.0, 0.035, 0.5], [1.2, 1.505, 1.95]]) / video.seconds
        assert video.on_screen(moments).tolist() == [[0, 3, 4], [5, 6, 8]]
        assert [number_of(frame, 10) for frame in video.frames([5, 8])] == [5, 8]


@pytest.mark.parametrize(
    "container, codec, pixels, size",
    [
        ("webm", "libvpx-vp9", "yuv420p", (47, 63)),
        ("webm", "libvpx-vp9", "yuva420p", (48, 64)),
        ("matroska", "libx264", "yuv444p10le", (47, 63)),
        ("matroska", "libx264", "yuvj422p", (48, 64)),
        ("matroska", "ffv1", "gray16le", (47, 63)),
        ("matroska", "ffv1", "rgb48le", (33, 35)),
        ("mov", "qtrle", "argb", (48, 64)),
        ("avi", "rawvideo", "bgr24", (48, 64)),
    ],
)
def test_odd_pixels_and_sizes_are_converted(container: str, codec: str, pixels: str, size: tuple[int, int]) -> None:
    data = make_video(container, codec=codec, pixels=pixels, size=size)
    with open_video(data) as video:
        frames = list(video.frames([0, 10, 19]))
    assert {frame.shape for frame in frames} == {(*size, 3)}
    assert [number_of(frame, 20) for frame in frames] == [0, 10, 19]


def test_frames_of_avi_are_counted_where_its_times_are_those_of_decoding() -> None:
    assert numbers(make_video("avi", codec="libx264"), list(range(20))) == list(range(20))


def test_frames_before_the_first_keyframe_are_no_part_of_the_video() -> None:
    stream = make_video("mpegts", codec_options={"g": "5"})
    with open_video(stream[188 * 9 :]) as video:
        assert [number_of(frame, 20) for frame in video.frames(range(len(video)))] == list(range(4, 20))


def test_frames_that_an_edit_list_cuts_off_are_no_part_of_the_video() -> None:
    data = make_video(
        milliseconds=[40 * number - 120 for number in range(20)],
        options={"avoid_negative_ts": "disabled", "use_editlist": "1"},
        codec_options={"bf": "0"},
    )
    with open_video(data) as video:
        assert video.seconds == pytest.approx(0.68)
        assert [number_of(frame, 20) for frame in video.frames(range(len(video)))] == list(range(3, 20))


def test_frames_that_change_their_size_come_in_that_of_the_first() -> None:
    data = make_video("mpegts", size=(48, 64)) + make_video("mpegts", size=(96, 128))
    with open_video(data) as video:
        frames = list(video.frames([5, 35]))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 2
    assert [number_of(frame, 20) for frame in frames] == [5, 15]
    assert refusal(data, max_pixels=5000)[0] == "video_corrupt"  # the decoder is held to it


def test_interlaced_frames_are_whole_frames() -> None:
    assert numbers(make_video(codec_options={"x264-params": "interlaced=1"}), [0, 7, 19]) == [0, 7, 19]


@pytest.mark.parametrize(
    "data, words",
    [
        (make_video("mp4")[:2000], "without its index"),
        (make_video("mp4", options=FASTSTART, frames=60)[:-2000], "promises 60 frames"),
        (make_video("mp4", options=FASTSTART)[:-2], "ends inside a frame"),
        (make_video("webm", frames=60)[:-1000], "promises 2.4 seconds"),
        (make_video("matroska")[:1000], "holds 0.0"),
        (make_video("avi")[:-3000], "promises 20 frames"),
        (make_gif()[:-100], "GIF without its end"),
    ],
)
def test_a_file_cut_off_is_refused_even_where_it_could_be_decoded(data: bytes, words: str) -> None:
    code, message = refusal(data)
    assert code == "video_truncated" and words in message and "send the whole file" in message


@pytest.mark.parametrize(
    "data, code, words",
    [
        (b"", "empty_body", "no bytes at all"),
        (b"Not a video at all.\n" * 20, "not_a_video", "found text"),
        (bytes(range(256)), "not_a_video", "no known video format"),
        (b"%PDF-1.7\n", "not_a_video", "found PDF"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "not_a_video", "found text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "still_image", "still picture (PNG)"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "still_image", "still picture (HEIC)"),
        (make_gif(1), "still_image", "GIF of a single picture"),
        (make_audio(cover=True), "no_video_stream", "holds a cover picture, audio only"),
        (make_audio(), "no_video_stream", "holds audio only"),
        (make_video()[:40] + bytes(4000), "video_truncated", "without its index"),
        (b"\x1aE\xdf\xa3" + bytes(400), "video_corrupt", "matroska that cannot be opened"),
    ],
)
def test_what_is_no_video_gets_a_sentence(data: bytes, code: str, words: str) -> None:
    found, message = refusal(data)
    assert found == code and words in message


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="cannot be read"), open_video(tmp_path / "none.mp4"):
        pass


@pytest.mark.parametrize(
    "limits, code, words",
    [
        ({"max_bytes": 1000}, "video_too_large", "at most 1000 are accepted"),
        ({"max_pixels": 3000}, "video_too_large", "64 x 48 = 3072 pixels"),
        ({"max_seconds": 0.5}, "video_too_long", "0.8 seconds"),
        ({"max_frames": 19}, "video_too_long", "20 frames"),
        ({"max_aspect": 1.2}, "aspect_ratio", "at most 1.2:1"),
        ({"decoding_seconds": 1e-9}, "decoding_too_slow", "longer to decode"),
    ],
)
def test_limits_hold(limits: dict[str, float], code: str, words: str, tmp_path: Path) -> None:
    data = make_video()
    (tmp_path / "video").write_bytes(data)
    for source in (data, tmp_path / "video"):
        found, message = refusal(source, **limits)
        assert found == code and words in message


def test_a_header_that_claims_ten_hours_is_refused() -> None:
    data = with_matroska_seconds(make_video("matroska"), 36_000)
    assert refusal(data)[0] == "video_too_long"
    assert refusal(data, max_seconds=1e6)[0] == "video_truncated"


def test_a_header_that_claims_less_than_there_is_does_not_get_past_the_limits() -> None:
    data = with_matroska_seconds(make_video("matroska"), 0.04)
    assert refusal(data, max_seconds=0.5)[0] == "video_too_long"
    assert refusal(data, max_frames=19)[0] == "video_too_long"
    assert numbers(data, [19]) == [19]


def test_time_also_runs_out_while_decoding() -> None:
    with open_video(make_video()) as video:
        frames = video.frames(range(20))
        next(frames)
        video.deadline = 0.0
        with pytest.raises(VideoError, match="longer to decode"):
            list(frames)


@pytest.mark.slow
def test_frames_are_let_go_as_soon_as_they_have_been_seen() -> None:
    def alive() -> int:
        return sum(issubclass(type(item), av.VideoFrame) for item in gc.get_objects())  # asks no proxy for its class

    gc.collect()
    before = alive()
    gc.disable()
    try:
        with open_video(make_video(frames=40)) as video:
            for number, _ in enumerate(video.frames(range(40))):
                assert number % 13 or alive() - before < 10  # looking through all objects of a long run takes a second
    finally:
        gc.enable()


def test_colours_that_nobody_converts_are_a_sentence() -> None:
    code, message = refusal(make_video(codec_options={"x264-params": "colormatrix=YCgCo"}))
    assert code == "unsupported_format" and "colours cannot be converted" in message


@pytest.mark.parametrize("error, expected", [(av.error.MemoryError(12, "no"), VideoError), (MemoryError, MemoryError)])
def test_memory_that_a_file_asks_for_in_vain_is_its_own_fault(
    error: type[Exception], expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(expected), open_video(b"\x1aE\xdf\xa3"):
        pass


@pytest.mark.parametrize(
    "error, expected, code",
    [
        (av.error.MemoryError(12, "no"), VideoError, "video_corrupt"),
        (av.error.OSError(95, "no"), VideoError, "unsupported_format"),
        (av.error.InvalidDataError(1, "no"), VideoError, "unsupported_format"),
        (MemoryError(), MemoryError, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_fails_when_colours_are_converted_is_a_sentence_but_for_our_own_memory(
    error: Exception, expected: type[Exception], code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def reformat(self, *arguments: object, **options: object) -> None:
            raise error

    monkeypatch.setattr(av.video.reformatter, "VideoReformatter", Failing)
    with pytest.raises(expected) as caught, open_video(make_video()) as video:
        list(video.frames([0]))
    assert getattr(caught.value, "code", None) == code


def test_flipped_bytes_give_frames_or_a_sentence() -> None:
    generator = random.Random(0)
    refused = 0
    for container in ("mp4", "webm", "avi", "mpegts"):
        intact = make_video(container)
        for _ in range(25):
            data = bytearray(intact)
            for _ in range(8):
                data[generator.randrange(len(data))] = generator.randrange(256)
            try:
                with open_video(bytes(data)) as video:
                    assert all(frame.shape[2] == 3 for frame in video.frames(range(len(video))))
            except VideoError:
                refused += 1
    assert 5 < refused < 100


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConvMAEError, match=r"\.\[video\]"), open_video(b"\0"):
        pass


@needs_asl20
def test_real_clips_have_all_their_frames() -> None:
    files = sorted(ASL20.rglob("*.mp4"))
    assert len(files) == 20
    for file in files:
        with open_video(file) as video:
            assert len(list(video.frames([0, len(video) // 2, len(video) - 1]))) == 3
            assert len(video) == video.header.frames
            assert video.seconds == pytest.approx(len(video) / (video.header.rate or 0), rel=0.02)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_video_that_is_no_regular_file_is_never_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConvMAEError, match="not a file"), open_video(path):
        pass
