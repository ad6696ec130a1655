"""The files that a run could not decode: all of them in a file of the run folder, the first of each epoch in words."""

from collections.abc import Iterable
from pathlib import Path

from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.printing import counted

NAME = "unreadable.txt"  # in the run folder: a path and a reason a line, between them a tab; each path once


class UnreadableLog:
    """Counts files by epoch. Only the main process of a distributed run may have one that writes."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        """
        Args:
            folder: of the run; what an earlier part of it listed is not listed again.
            writes: whether the list is written.
        """
        self.path = folder / NAME
        self._writes = writes
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self._listed = {line.partition("\t")[0] for line in lines}
        self._epoch: list[Unreadable] = []

    def add(self, files: Iterable[Unreadable]) -> None:
        """Takes the files of an update or of a validation, of all processes."""
        for entry in files:
            self._epoch.append(entry)
            if self._writes and entry.file not in self._listed:
                self._listed.add(entry.file)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{entry.file}\t{entry.reason}\n")

    def finish_epoch(self) -> str | None:
        """What to say of the files since the last call; None where all could be decoded."""
        files, self._epoch = self._epoch, []
        if not files:
            return None
        first = f"the first {files[0].file}: {files[0].reason}"
        return f"{counted(len(files), 'file')} could not be decoded, {first} (listed in {self.path})"
