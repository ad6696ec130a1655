from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import features, photo_search
from benchmarks.features import FeaturesConfig, measure_memory, measure_rate
from tests.bundle_factory import make_bundle
from tests.extraction.photos import write_photos


@pytest.mark.slow
def test_short_runs_print_rates_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    config = FeaturesConfig(bundle=bundle, sizes=(64,), photos=8, rounds=1, memory_photos=(4, 8))
    console = Console(width=200)
    measure_rate(config, console)
    measure_memory(config, console)
    printed = capsys.readouterr().out
    assert "64 px" in printed and "most memory, MB" in printed


def test_a_missed_gate_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features, "job_seconds", lambda *arguments: 2.0)
    monkeypatch.setattr(features, "bare_seconds", lambda *arguments: 1.0)
    config = FeaturesConfig(bundle=make_bundle(tmp_path / "bundle"), sizes=(64,), photos=2, rounds=1)
    assert measure_rate(config, Console(quiet=True)) == ["rate of 64 px is 0.500, at least 0.93 is wanted"]


@pytest.mark.slow
def test_photos_of_a_class_find_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    for name in ("a", "b"):
        write_photos(
            tmp_path / "photos" / "val" / name, 12
        )  # the same twelve, so half of the neighbours are of the class
    monkeypatch.setattr("sys.argv", ["x", str(bundle), "--data", str(tmp_path / "photos")])
    photo_search.main()
    printed = capsys.readouterr().out
    assert "24 photos of 2 classes" in printed and "30 dB" in printed
    assert [line.split("│")[1].strip() for line in printed.splitlines() if "│ e" in line] == ["e1", "e2", "e3", "e4"]
