import subprocess
import sys
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import readable, run_program


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
