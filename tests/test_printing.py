"""Text out of files, for a terminal."""

import pytest

from convmae_deploy.printing import printable


@pytest.mark.parametrize("text", ["", "a b", "\u732b.jpg", "naïve – “quoted”", "C:\\\\photos"])
def test_what_can_be_printed_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nerror: forged", "a\\nerror: forged"),
        ("\x9b2J", "\\x9b2J"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_drives_a_terminal_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
