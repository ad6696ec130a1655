import errno
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import failures_in_words
from export import failures
from export.engines import builder

FULL = "a disk is full .* free some room where the output goes and in the folder for temporary files, /"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/model.onnx"), FULL),
        (OSError("2048 requested and 1024 written"), FULL),
        (OSError(errno.EIO, "Input/output error"), r"a disk refuses to go on \(Input/output error\)"),
        (OSError(errno.EFBIG, "File too large", "/x/a"), r"a disk refuses to go on at /x/a \(File too large\)"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "set TMPDIR to one"),
        (MemoryError(), "memory of this machine is used up; take a smaller --max-batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory of this machine is used up"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(error: Exception, sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=f"^[^\n]*{sentence}[^\n]*$"), failures_in_words(failures.in_words):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "No such file", "a")])
def test_anything_else_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, failures_in_words(failures.in_words):
        raise error
    assert caught.value is error


def test_numpy_on_a_full_disk_is_recognised() -> None:
    with (
        pytest.raises(ConvMAEError, match=FULL),
        failures_in_words(failures.in_words),
        Path("/dev/full").open("wb") as file,
    ):
        np.save(file, np.zeros(10**6))


def test_a_full_disk_reaches_whoever_waits_for_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(builder, "_build", fill)
    sent: list[object] = []
    builder._build_and_send(None, type("Sender", (), {"send": lambda _, event: sent.append(event)})())  # type: ignore[arg-type]
    assert isinstance(sent[0], OSError) and sent[0].errno == errno.ENOSPC
