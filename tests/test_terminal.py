"""Text out of files on the console of all programs."""

import io
import logging

import pytest
from rich.table import Table
from rich.text import Text

from convmae_deploy.printing import PrintableFormatter
from convmae_deploy.terminal import Terminal


def printed(renderable: object) -> str:
    file = io.StringIO()
    Terminal(file=file, width=200).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title", "\\x1b[31mred\\x1b]0;title"),
        ("\x9b2J", "\\x9b2J"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("[red]label[/red] [/] :smile:", "[red]label[/red] [/] :smile:"),
        ("猫 – naïve", "猫 – naïve"),
    ],
)
def test_text_is_shown_as_it_is_and_drives_nothing(text: str, shown: str) -> None:
    assert printed(text) == f"{shown}\n"
    assert printed(Text(text)) == f"{shown}\n"
    table = Table("heading", min_width=100)
    table.add_row(text)
    assert shown in printed(table) and "\x1b" not in printed(table)


def test_lines_stay_lines_and_styles_stay_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed("one\ntwo") == "one\ntwo\n"
    file = io.StringIO()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    Terminal(file=file, width=80).print("text", style="bold")
    assert file.getvalue().rstrip("\n") == "\x1b[1mtext\x1b[0m"


def test_a_log_s_lines_cannot_be_forged_and_tracebacks_stay_readable() -> None:
    formatter = PrintableFormatter("warning: %(message)s")
    record = logging.LogRecord("name", logging.WARNING, "file", 1, "found %s", ("\x1b[2J\nerror: forged",), None)
    assert formatter.format(record) == "warning: found \\x1b[2J\\nerror: forged"
    try:
        raise ValueError("reason")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    assert formatter.format(record).splitlines()[1] == "Traceback (most recent call last):"
