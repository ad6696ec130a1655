"""The bounds themselves: each kind of misbehaviour is seen."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from tests.hostile.bounds import MEGABYTE, bounded

pytestmark = pytest.mark.slow  # together


def take_memory(megabytes: int) -> int:
    return len(bytearray(b"\1") * megabytes * MEGABYTE) // MEGABYTE


def never_end() -> None:
    while True:
        pass


def refuse() -> None:
    raise ConvMAEError("expected this, found that")


def fail() -> None:
    raise KeyError("this")


def end_itself() -> None:
    os.abort()


def misbehave(secret: str) -> None:
    Path(secret).read_text()
    subprocess.run([sys.executable, "-c", ""])
    with socket.socket() as connection:
        connection.connect_ex(("127.0.0.1", 9))


def test_what_is_returned_and_how_much_memory_it_took_is_told() -> None:
    ending = bounded(take_memory, 40)
    assert (ending.how, ending.value) == ("returned", 40)
    assert 39 * MEGABYTE <= ending.grown < 100 * MEGABYTE  # the kernel counts in lots
    assert not ending.started and not ending.connected and not ending.opened


def test_more_memory_than_allowed_is_not_given() -> None:
    assert bounded(take_memory, 400, memory=200 * MEGABYTE).how == "out of memory"


def test_a_call_without_end_is_killed_by_its_processor_time() -> None:
    ending = bounded(never_end, processor_seconds=1)
    assert (ending.how, ending.sentence) == ("killed", "SIGKILL")


@pytest.mark.parametrize(
    ("call", "how", "sentence"),
    [
        (refuse, "refused", "expected this, found that"),
        (fail, "failed", "KeyError: 'this'"),
        (end_itself, "killed", "SIGABRT"),
    ],
)
def test_an_exception_and_a_crash_are_told(call: object, how: str, sentence: str) -> None:
    assert callable(call)
    ending = bounded(call)
    assert (ending.how, ending.sentence) == (how, sentence)


def test_processes_connections_and_files_are_told(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("")
    ending = bounded(misbehave, str(secret))
    assert ending.how == "returned"
    assert any(one.startswith("subprocess.Popen") for one in ending.started)
    assert any("127.0.0.1" in one for one in ending.connected)
    assert ending.opened == (str(secret),)
    assert ending.opened_outside(tmp_path) == [] and ending.opened_outside(tmp_path / "below") == [str(secret)]
