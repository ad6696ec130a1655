"""What a machine refuses an export, as one sentence with what to do: disks, memory, temporary folders."""

import errno
import re
import tempfile

from convmae_deploy.program import BROKEN, FULL, NO_MEMORY

_HALF_WRITTEN = re.compile(r"\d+ requested and \d+ written")  # NumPy, on a full disk, without the number of the error


def in_words(error: Exception) -> str | None:
    """What the machine refused an export, for `failures_in_words`; None where it is none of that."""
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return "the memory of this machine is used up; take a smaller --max-batch, or end other programs, and try again"
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL or _HALF_WRITTEN.search(str(error)):
        return (
            f"a disk is full ({error.strerror or error}); free some room where the output goes and in the folder for "
            f"temporary files, {_temporary_folder()}, and run this again"
        )
    if error.errno == errno.ENOENT and "temporary directory" in str(error):
        return "no folder for temporary files can be written to; set TMPDIR to one that can"
    if error.errno in BROKEN:
        where = "" if error.filename is None else f" at {error.filename}"
        return (
            f"a disk refuses to go on{where} ({error.strerror}); check that of the output and the folder for temporary "
            f"files, {_temporary_folder()}, and run this again"
        )
    return None


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "which TMPDIR names"
