"""The list of files that a run could not decode."""

from pathlib import Path

from convmae_deploy.data.unreadable import Unreadable, UnreadableCount
from convmae_deploy.engine.unreadable_log import NAME, UnreadableLog

A, B = Unreadable("a.jpg", "it is broken"), Unreadable("b.jpg", "it is too large")


def test_each_epoch_names_the_first_file_with_its_reason_and_the_list_has_each_once(tmp_path: Path) -> None:
    log = UnreadableLog(tmp_path)
    assert log.finish_epoch() is None and not (tmp_path / NAME).exists()
    log.add([A, B])
    assert log.finish_epoch() == (
        f"2 files could not be decoded, the first a.jpg: it is broken (listed in {tmp_path / NAME})"
    )
    log.add([B])
    assert log.finish_epoch() == (
        f"1 file could not be decoded, the first b.jpg: it is too large (listed in {tmp_path / NAME})"
    )
    assert (tmp_path / NAME).read_text() == "a.jpg\tit is broken\nb.jpg\tit is too large\n"


def test_a_resumed_run_goes_on_with_its_list(tmp_path: Path) -> None:
    UnreadableLog(tmp_path).add([A])
    again = UnreadableLog(tmp_path)
    again.add([A, B])
    assert (tmp_path / NAME).read_text().count("\n") == 2


def test_other_processes_than_the_main_one_write_nothing(tmp_path: Path) -> None:
    UnreadableLog(tmp_path, writes=False).add([A])
    assert not list(tmp_path.iterdir())


def test_a_name_that_drives_the_terminal_is_escaped_and_a_reason_is_short() -> None:
    entry = Unreadable.because("\x1b[2J\n.jpg", ValueError("x" * 1000))
    assert entry.file == "\\x1b[2J\\n.jpg" and len(entry.reason) == 300


def test_a_count_knows_its_files_and_is_a_number() -> None:
    count = UnreadableCount.of([A, B])
    assert count == 2 and count.files == (A, B) and sum([count, 1]) == 3
