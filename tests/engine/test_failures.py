"""What a machine refuses a training becomes one sentence; what is a bug stays one."""

import errno
import threading
from pathlib import Path

import pytest
import torch

from convmae_deploy.engine.failures import training_failures_in_words
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig
from convmae_deploy.errors import ConvMAEError

CONFIG = TrainingConfig(data="photos", run=RunConfig(out=Path("runs/mine"), workers=3))
KILLED = "DataLoader worker (pid 15972) is killed by signal: Killed. "
BUS = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
EXITED = "DataLoader worker (pid(s) 8) exited unexpectedly"
LOST = "DataLoader worker (pid 8) exited unexpectedly with exit code {}. Details are lost due to multiprocessing."
SHARED = "Caught RuntimeError in DataLoader worker process 0.\nunable to write to file </torch_1_2>: No space left (28)"


@pytest.fixture(autouse=True)
def own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program that fails leaves is no other test's."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError(KILLED), r"one of the 3 decoding processes was ended from outside \(Killed\).* fewer --workers"),
        (
            RuntimeError(EXITED),
            r"one of the 3 decoding processes was ended from outside, most often for want of memory",
        ),
        (RuntimeError(BUS), "more shared memory than there is in /dev/shm; .*--shm-size"),
        (RuntimeError(SHARED), "more shared memory than there is in /dev/shm"),
        (RuntimeError(LOST.format(errno.ENOSPC)), "more shared memory than there is in /dev/shm"),
        (RuntimeError(LOST.format(errno.EMFILE)), "more open files than are allowed; raise ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "more open files than are allowed"),
        (OSError(errno.EMFILE, "Too many open files"), "more open files than are allowed"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "memory for the model and up to 128 files at once; take a smaller",
        ),
        (MemoryError(), "not enough memory for the model and up to 128 files at once"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "memory for the model and up to 128 files",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk of runs/mine is full .* whole: free some room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"the disk of runs/mine is full \(Disk quota exceeded\)"),
        (OSError(errno.EROFS, "Read-only file system"), r"a disk refuses to go on \(Read-only file system\)"),
        (
            OSError(errno.ENOENT, "No such file", "runs/mine/.x.tmp"),
            "runs/mine can no longer be written to .No such file",
        ),
        (
            OSError(errno.EROFS, "Read-only", b"runs/mine/tensorboard/a"),
            "runs/mine can no longer be written to .Read-only",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(
    error: Exception, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").touch()
    with (
        pytest.raises(ConvMAEError, match=f"^[^\n]*{sentence}[^\n]*and continue with --resume$"),
        training_failures_in_words(CONFIG),
    ):
        raise error


def test_where_no_run_has_begun_none_is_to_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ConvMAEError, match="runs/mine cannot be written to .*; put that right and start again$"),
        training_failures_in_words(CONFIG),
    ):
        raise OSError(errno.ENAMETOOLONG, "File name too long", "runs/mine/run.json")


def test_why_a_process_ended_is_found_in_the_cause() -> None:
    with pytest.raises(ConvMAEError, match="more shared memory"), training_failures_in_words(CONFIG):
        raise RuntimeError(EXITED) from RuntimeError(LOST.format(errno.ENOSPC))


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ZeroDivisionError(), OSError(errno.ENOENT, "No such file", "a.jpg")]
)
def test_anything_else_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, training_failures_in_words(CONFIG):
        raise error
    assert caught.value is error


def test_a_thread_that_a_full_disk_ends_is_quiet_and_one_with_a_bug_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    def fail_in_threads() -> None:
        for error in (OSError(errno.ENOSPC, "No space left on device"), ZeroDivisionError("a bug")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()

    before = threading.excepthook
    with training_failures_in_words(CONFIG):
        pass
    assert threading.excepthook is before
    with pytest.raises(ConvMAEError), training_failures_in_words(CONFIG):
        fail_in_threads()
        raise MemoryError
    fail_in_threads()  # as the program ends
    told = capsys.readouterr().err
    assert told.count("ZeroDivisionError: a bug") == 2 and "No space left" not in told
