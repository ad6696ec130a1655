import errno
import subprocess
import sys
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import readable, require_extra, run_program
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1)])
def test_the_status_is_what_main_returns(result: int | None, status: int) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: result)
    assert caught.value.code == status


def test_what_the_user_can_mend_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ConvMAEError("expected this, found that")

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: expected this, found that\n")


def test_a_name_from_a_file_cannot_drive_the_terminal_through_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ConvMAEError("found the class 'a\x1b]0;title\x07\nerror: forged'")

    with pytest.raises(SystemExit):
        run_program(main)
    assert capsys.readouterr().err == "error: found the class 'a\\x1b]0;title\\x07\\nerror: forged'\n"


@pytest.mark.parametrize("name", [None, "runs/mine/table.png"])
def test_a_full_disk_is_one_sentence(name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: a disk is full (No space left on device); free some room")


def test_an_interrupt_is_quiet_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_program(main)


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from convmae_deploy.program import run_program\nrun_program(lambda: print('line\\n' * 100_000))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_text_that_the_terminal_cannot_show_does_not_end_the_program() -> None:
    code = "from convmae_deploy.program import run_program\nrun_program(lambda: print('\\u00fc\\udcff'))"
    environment = {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, cwd=Path.cwd())
    assert (result.returncode, result.stdout) == (0, b"\\xfc\\udcff\n")


def test_paths_are_readable_whatever_their_bytes() -> None:
    assert readable(Path("b\udcff.jpg")) == "b\ufffd.jpg"
    assert readable(Path("\x1b[31m.jpg")) == "\\x1b[31m.jpg"


def test_a_termination_removes_what_is_half_written(tmp_path: Path) -> None:
    code = (
        "import threading; from pathlib import Path; from convmae_deploy.files import atomic_directory\n"
        "from convmae_deploy.program import run_program\n"
        "def main():\n"
        f"    with atomic_directory(Path({str(tmp_path / 'out')!r})):\n"
        "        print('ready', flush=True); threading.Event().wait()\n"
        "run_program(main)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    require_extra("train", ("json",))
    with pytest.raises(SystemExit) as caught:
        require_extra("train", ("json", "no_such_package"))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: this program needs no_such_package; run pip install '.[train]'")
    assert error.count("\n") == 1


def test_a_path_that_the_system_refuses_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: Path("x" * 300).stat().st_size)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: 'xxx") and error.count("\n") == 1
    assert "cannot be used (File name too long); check the path" in error and len(error) < 300


def test_an_error_of_the_system_without_a_path_is_a_bug() -> None:
    def main() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run_program(main)


def test_a_file_name_that_a_shell_makes_a_flag_of_cannot_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["convmae", "predict", "bundle", "--device=\x1b[31mRAW.jpg"])
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: 0)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "put -- before the names of files" in error and "\x1b" not in error
    monkeypatch.setattr(sys, "argv", ["convmae", "predict", "bundle", "--", "--\x1b.jpg"])
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: 0)
    assert caught.value.code == 0
