"""The acceptance run on a GPU, dry; and what happens when its time is over."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import EXPECTED, PARTS
from convmae_deploy.errors import ConvMAEError
from tests.waiting import GivenClock


@pytest.mark.slow
def test_a_dry_run_takes_every_part_to_its_end_and_writes_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    page = (tmp_path / "gpu.html").read_text()
    assert done.returncode == 0, page
    assert "the figures mean nothing" in page
    assert "<tr><td>bf16 product TFLOP/s<td>770 to 800 (measured there)<td>" in page
    outcomes = json.loads((tmp_path / "gpu.json").read_text())
    assert [(outcome["part"], outcome["state"]) for outcome in outcomes] == [(name, "done") for name in PARTS]
    found = {what: value for outcome in outcomes for what, value in outcome["found"].items()}
    assert found["shifted relative error"] < 1e-6 and found["weight gradient, shifted relative error"] < 1e-6
    assert found["fastest"].startswith("Algorithms(convolution=")
    assert found["dense loss over visible"] == pytest.approx(1, abs=1e-5)
    assert found["bf16 epoch 2"].startswith("loss ") and found["fp16 skipped updates"] == 0
    assert found["ONNX Runtime"] == "CPUExecutionProvider"
    assert set(EXPECTED) <= set(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.html", "gpu.json"]


def test_a_part_that_would_begin_too_late_is_not_begun(tmp_path: Path) -> None:
    outcomes = gpu.run_parts(gpu.Options(out=tmp_path, dry_run=True, minutes=0.1, parts=("tests",)), GivenClock())
    assert [outcome.state for outcome in outcomes] == ["not begun"]
    assert "<tr><th colspan=3>tests: not begun, 0 s</tr>" in (tmp_path / "gpu.html").read_text()


def test_what_a_part_finds_is_known_while_it_runs_and_kept_where_it_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = "open(sys.argv[4], 'w').write('{\"copy TB/s\": 4.25}')"
    part = f"import signal, sys; {finding}; signal.pause()"
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$PART" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PART", part)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(gpu, "WRITE_SECONDS", 0.01)
    outcome, clock = gpu.Outcome(part="ceilings", state="running"), GivenClock()

    def advance() -> None:
        if outcome.found:
            clock.advance(100)

    gpu.run_part(outcome, 40, clock, advance)
    assert (outcome.state, outcome.seconds, outcome.found) == ("out of time", 100, {"copy TB/s": 4.25})


def test_a_part_that_fails_is_shown_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no <kernel> image")

    monkeypatch.setattr(gpu, "measure", broken)
    assert gpu.main(gpu.Options(out=tmp_path, dry_run=True, parts=("ceilings",))) == 1
    page = (tmp_path / "gpu.html").read_text()
    assert "<h2>ceilings: failed</h2>" in page and "RuntimeError: no &lt;kernel&gt; image</pre>" in page


def test_a_figure_off_its_expectation_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    found = {"dense over visible": 1.39, "visible ms": 38.0}
    page = gpu.page([gpu.Outcome(part="step", state="done", found=found)], gpu.Options(out=tmp_path))
    assert '<tr class="off"><td>dense over visible<td>1.5 to 2.1; 1.4 is needed<td>1.39</tr>' in page
    assert "<tr><td>visible ms<td>30 to 45<td>38</tr>" in page and "NVIDIA H200" in page


def test_without_a_gpu_nothing_but_a_dry_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConvMAEError, match="needs an NVIDIA GPU that PyTorch can use, found none"):
        gpu.main(gpu.Options(out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_unknown_parts_are_refused_and_every_part_fits_into_the_time(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="expected parts among ceilings"):
        gpu.main(gpu.Options(out=tmp_path, parts=("speed",)))
    assert list(PARTS)[:3] == ["ceilings", "step", "tests"]
