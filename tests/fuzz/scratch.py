"""Files for readers that take a path."""

import atexit
import shutil
import tempfile
from pathlib import Path


def scratch_folder() -> Path:
    """A new folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="convmae-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
