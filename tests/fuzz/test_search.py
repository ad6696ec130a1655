"""What counts as a find, how it is kept, and what the program says."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from tests.fuzz import __main__ as program
from tests.fuzz import outcomes
from tests.fuzz import search as fuzz_search
from tests.fuzz.finds import add_find, read_finds
from tests.fuzz.outcomes import Broken, observe, smallest
from tests.fuzz.search import Result
from tests.fuzz.target import Violation, require, require_sentence, without_warnings
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]

CONFIRM = """
import os, signal
from pathlib import Path
from tests.fuzz.confirm import confirm

def check(data):
    if b"crash" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"hang" in data:
        os.kill(os.getpid(), signal.SIGXCPU)
    if b"x" in data:
        raise ValueError("an x")

confirm(check, Path("finds"), Path("artifacts"))
"""


def raise_value_error(data: bytes) -> None:
    raise ValueError("two\nlines")


def test_an_exception_that_is_not_the_readers_own_is_a_find_named_after_its_place() -> None:
    broken = observe(raise_value_error, b"")
    assert broken is not None
    assert broken.kind.startswith("ValueError at test_search.py:raise_value_error:")
    assert broken.sentence == "two lines"
    assert "Traceback" in broken.traceback


def test_a_reader_that_returns_in_time_and_within_memory_is_no_find(monkeypatch: pytest.MonkeyPatch) -> None:
    assert observe(len, b"") is None  # type: ignore[arg-type]
    monkeypatch.setattr(outcomes, "MAX_CPU_SECONDS", -1.0)
    slow = observe(len, b"")  # type: ignore[arg-type]
    assert slow is not None and slow.kind == "too slow"
    monkeypatch.setattr(outcomes, "MAX_CPU_SECONDS", 60.0)
    monkeypatch.setattr(outcomes, "MAX_BYTES", -1)
    greedy = observe(len, b"")  # type: ignore[arg-type]
    assert greedy is not None and greedy.kind == "too much memory"


def test_a_warning_is_a_find() -> None:
    import warnings

    def warn(data: bytes) -> None:
        warnings.warn("odd tag", UserWarning, stacklevel=1)

    with pytest.raises(Violation, match="UserWarning: odd tag"):
        without_warnings(warn)(b"")


@pytest.mark.parametrize("message", ["", "two\nlines", "\x1b[2J", "<object at 0x7f00>", "\ud800"])
def test_an_error_that_is_no_printable_line_is_a_find_blamed_on_where_it_was_raised(message: str) -> None:
    def refuse(data: bytes) -> None:
        raise ConvMAEError(message)

    def check(data: bytes) -> None:
        try:
            refuse(data)
        except ConvMAEError as error:
            require_sentence(error)

    broken = observe(check, b"")
    assert broken is not None and broken.kind.startswith("Violation at test_search.py:refuse:")


def test_an_error_may_quote_its_input_where_programs_escape_it() -> None:
    require_sentence(ConvMAEError("no class \x1b[2J"), quotes_input=True)
    with pytest.raises(Violation):
        require_sentence(ConvMAEError("no class \x1b[2J"))


def test_a_broken_promise_is_blamed_on_who_required_it() -> None:
    broken = observe(lambda data: require(False, "never"), b"")
    assert broken is not None and "test_search.py:<lambda>" in broken.kind


def test_an_input_is_shortened_to_what_breaks_the_promise() -> None:
    assert smallest(b"before-magic-after", lambda data: b"magic" in data) == b"magic"
    assert smallest(b"ab7cd", lambda data: len(data) == 5 and data[2] == ord("7")) == b"\0\x007\0\0"
    assert smallest(b"before-magic-after", lambda data: b"magic" in data, tries=0) == b"before-magic-after"


def test_of_one_kind_the_smallest_input_is_kept(tmp_path: Path) -> None:
    broken = Broken("ValueError at a.py:b:1", "no \ud800", "Traceback")
    for data in (b"long", b"s", b"longer"):
        add_find(tmp_path, data, broken)
    (find,) = read_finds(tmp_path)
    assert (find.kind, find.data) == (broken.kind, b"s")


@pytest.mark.slow
def test_what_ended_a_search_is_a_find_where_it_is_to_blame_and_mended_finds_go(tmp_path: Path) -> None:
    for folder in ("finds", "artifacts"):
        (tmp_path / folder).mkdir()
    add_find(tmp_path / "finds", b"mended", Broken("KeyError at a.py:b:1", "was here"))
    add_find(tmp_path / "finds", b"an axe", Broken("ValueError at a.py:b:2", "an x"))
    for name, data in {"crash-1": b"to crash", "timeout-1": b"to hang", "timeout-2": b"busy machine"}.items():
        (tmp_path / "artifacts" / name).write_bytes(data)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", CONFIRM], cwd=tmp_path, env=environment, check=True)
    found = {find.kind.split(" at ")[0]: find.data for find in read_finds(tmp_path / "finds")}
    assert found == {"ValueError": b"x", f"killed by {signal.SIGSEGV.name}": b"crash", "too slow": b"hang"}
    assert not list((tmp_path / "artifacts").iterdir())


def test_finds_of_an_earlier_search_are_tried_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds = tmp_path / "exif" / "finds"
    add_find(finds, b"mended", Broken("ValueError at a.py:b:1", "an x"))
    started: list[str] = []

    def run(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> int:
        started.append(module)
        log.write_text("stat::number_of_executed_units: 5\n")
        return 0

    monkeypatch.setattr(fuzz_search, "_run", run)
    result = fuzz_search.search("exif", TARGETS["exif"], 60.0, tmp_path, seed=1)
    assert started == ["seeds", "confirm", "worker", "confirm"]
    assert result.executions == 5


def test_a_search_that_does_not_run_says_where_its_reason_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> int:
        log.write_text("no module named x")
        return int(module == "worker")

    monkeypatch.setattr(fuzz_search, "_run", run)
    with pytest.raises(ConvMAEError, match="ended with status 1; .*stretch0.log says why"):
        fuzz_search.search("exif", TARGETS["exif"], 60.0, tmp_path, seed=1)


def test_the_numbers_of_several_stretches_are_added_up() -> None:
    result = Result(target="tiff")
    for peak in (90, 80):
        result.add(
            "#2\tINITED cov: 3 ft: 4 corp: 1/5b exec/s: 0 rss: 82Mb\n#9\tDONE   cov: 30 ft: 40 corp: 7/50b lim: 9\n"
            f"stat::number_of_executed_units: 100\nstat::peak_rss_mb:              {peak}\n"
        )
    assert (result.executions, result.peak_mib) == (200, 90)
    assert (result.coverage, result.features, result.corpus) == (30, 40, 7)


def test_the_status_says_whether_something_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_find(tmp_path, b"abc", Broken("ValueError at a.py:b:1", "a sentence"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(program, "search", lambda name, *_: Result(target=name))
    assert program.main(["exif", "--out", str(tmp_path)]) == 0
    finds = tuple(read_finds(tmp_path))
    monkeypatch.setattr(program, "search", lambda name, *_: Result(target=name, finds=finds))
    assert program.main(["exif", "--out", str(tmp_path)]) == 1
    assert "exif: ValueError at a.py:b:1: a sentence (3 bytes, " in capsys.readouterr().out


def test_without_atheris_the_program_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        program.main(["exif"])
    assert "'.[fuzz]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nothing"], [], ["exif", "--minutes", "0"]])
def test_targets_and_minutes_that_make_no_search_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ConvMAEError, match="must be"):
        program.main(arguments)
