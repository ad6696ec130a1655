"""What the README of extraction shows, run as it stands there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.extraction.photos import write_photos
from tests.test_readme import ROOT, lines_of, python_blocks, run_line

PAGE = "convmae_deploy/extraction/README.md"


@pytest.mark.slow
def test_the_commands_and_programs_run_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "serving").symlink_to(ROOT / "serving")
    write_photos(tmp_path / "photos", 11)
    shutil.copy(ROOT / "serving" / "golf-ball.jpg", tmp_path / "photos")
    first, compatible = re.findall(r"^```bash\n(.*?)^```", (ROOT / PAGE).read_text(), flags=re.MULTILINE | re.DOTALL)
    said = [run_line(line, tmp_path) for line in (*lines_of(first), *lines_of(compatible))]
    assert "1 shard written; 12 photos" in said[0] and "the same fingerprint" in said[2]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    reading, search, extractor = python_blocks(PAGE)
    names: dict[str, Any] = {}
    exec(compile(search, PAGE, "exec"), names)
    found = names["search"]("serving/golf-ball.jpg")
    assert len(found) == 10 and found[0][0] == "photos/golf-ball.jpg" and found[0][1] == pytest.approx(1, abs=1e-5)
    names = {}
    exec(compile(reading, PAGE, "exec"), names)
    assert names["vectors"].shape == (12, 192)
    assert names["near"][0][0] == names["table"]["path"][0] and names["near"][0][1] == pytest.approx(1)
    assert names["dataset"][3]["pooled"].tolist() == names["vectors"][3].tolist()
    exec(compile(extractor, PAGE, "exec"), names)
    assert [error is None for error in names["table"]["error"].to_pylist()] == [True, False]
    assert "photos/golf-ball.jpg" in capsys.readouterr().out
