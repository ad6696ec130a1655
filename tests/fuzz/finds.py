"""Where finds are kept: OUT/TARGET/finds/NAME/ with the input, and a text that says which promise it breaks."""

from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.outcomes import Broken

INPUT, TEXT = "input.bin", "what.txt"


@dataclass(frozen=True)
class Find:
    """One promise that is broken, by the smallest input that is known to."""

    folder: Path
    kind: str
    sentence: str
    data: bytes


def add_find(finds: Path, data: bytes, broken: Broken) -> None:
    """Keeps an input that breaks a promise, unless a smaller one is there."""
    folder = finds / broken.short
    if (folder / INPUT).is_file() and (folder / INPUT).stat().st_size <= len(data):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INPUT).write_bytes(data)
    text = f"{broken.kind}\n{broken.sentence}\n\n{broken.traceback}"
    (folder / TEXT).write_text(text, encoding="utf-8", errors="backslashreplace")


def read_finds(finds: Path) -> list[Find]:
    """What was kept, by kind."""
    found = []
    for text in finds.glob(f"*/{TEXT}"):
        kind, sentence, *_ = text.read_text(encoding="utf-8").split("\n")
        found.append(Find(text.parent, kind, sentence, (text.parent / INPUT).read_bytes()))
    return sorted(found, key=lambda find: find.kind)
