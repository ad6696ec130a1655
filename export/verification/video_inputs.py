"""Clips that a graph is tried on: of real videos where there are any, else made here."""

from pathlib import Path

import numpy as np

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import ClipPreprocessing
from convmae_deploy.data.video_folder import read_video_folder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_formats import find_videos
from convmae_deploy.tasks.clips import read_clips
from convmae_deploy.tasks.preprocess import preprocess
from export.verification.inputs import Samples, data_of_run, made_photos, read_some, tell_of_run

PANNED = 3 / 4  # of the sides of a made picture are in a frame at a time


def verification_clips(spec: ClipPreprocessing, data: Path | None, checkpoint: Path, count: int) -> Samples:
    """The middle clips of real videos where there are any: of the folder given, else of the run's validation.

    Args:
        spec: preprocessing of the model.
        data: folder of videos; None looks for those of the run, and makes clips where they are gone.
        checkpoint: run folder or checkpoint.
        count: how many at the most.

    Raises:
        ConvMAEError: `data` holds no readable video, or PyAV is not installed.
    """
    if data is not None:
        return Samples("videos", read_videos(data, spec, count))
    own = data_of_run(checkpoint)
    if own is not None:
        try:
            videos = read_video_folder(own, "val").videos
        except ConvMAEError:  # they were moved or removed
            videos = ()
        clips = read_some(videos, count, lambda path: read_clips(path, spec)[0])
        if clips:
            tell_of_run("videos", own, checkpoint)
            return Samples("videos", clips)
    return Samples("made clips", made_clips(spec, count))


def read_videos(folder: Path, spec: ClipPreprocessing, count: int) -> list[FloatArray]:
    """Clips (3, T, H, W) of up to `count` videos spread evenly over those below `folder`; unreadable ones are skipped.

    Raises:
        ConvMAEError: there is none.
    """
    if not folder.is_dir():
        raise ConvMAEError(
            f"--data must be a folder of videos; found {'a file' if folder.exists() else 'nothing'} at {folder}"
        )
    clips = read_some(find_videos([folder]), count, lambda path: read_clips(path, spec)[0])
    if not clips:
        raise ConvMAEError(f"--data {folder} holds no readable video; choose another folder")
    return clips


def made_clips(spec: ClipPreprocessing, count: int) -> list[FloatArray]:
    """`count` clips (3, T, H, W), each a pan from one corner of a made picture to the opposite one."""
    clips = []
    for picture in made_photos(count):
        width, height = (round(PANNED * side) for side in picture.size)
        frames = []
        for share in np.linspace(0, 1, spec.frames):
            left, top = round(share * (picture.width - width)), round(share * (picture.height - height))
            frames.append(preprocess(picture.crop((left, top, left + width, top + height)), spec))
        clips.append(np.stack(frames, axis=1))
    return clips
