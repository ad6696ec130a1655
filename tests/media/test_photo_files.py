"""Photos as files."""

import os
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import MAX_PHOTO_BYTES, read_photo


@pytest.mark.parametrize("kind", ["pipe", "device", "huge", "missing"])
def test_only_a_file_of_a_photos_size_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(MAX_PHOTO_BYTES + 1)  # no byte of it on the disk
    words = {"huge": f"at most {MAX_PHOTO_BYTES} are read", "missing": "No such file"}.get(kind, "not a file")
    with pytest.raises(ConvMAEError, match=words):
        read_photo(path)
