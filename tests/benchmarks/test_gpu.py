"""The acceptance run on a GPU, dry; and what happens when its time is over."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import PARTS, shifted
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convolution import convolve
from tests.waiting import GivenClock

QUICK = ("ceilings", "tests", "depthwise", "detector", "onnxruntime")  # the others run in their own benchmarks' tests


def test_a_dry_run_writes_what_it_found_beside_what_is_expected(tmp_path: Path) -> None:
    assert gpu.main(gpu.Options(out=tmp_path, dry_run=True, parts=QUICK)) == 0
    page = (tmp_path / "gpu.md").read_text()
    assert "the figures mean nothing" in page
    assert "| | bf16 product TFLOP/s | 770 to 800 (measured there) | " in page
    outcomes = json.loads((tmp_path / "gpu.json").read_text())
    assert [(outcome["part"], outcome["state"]) for outcome in outcomes] == [(name, "done") for name in QUICK]
    assert outcomes[2]["found"]["shifted relative error"] < 1e-6
    assert "CPUExecutionProvider" in outcomes[4]["found"]["ONNX Runtime"]


def test_a_part_that_takes_too_long_is_ended_and_one_that_would_begin_too_late_is_not_begun(tmp_path: Path) -> None:
    options = gpu.Options(out=tmp_path, dry_run=True, minutes=0.5, parts=("ceilings", "step", "tests"))
    assert gpu.run_part("step", 0.01, options, GivenClock()).state == "out of time"
    clock = GivenClock()
    clock.now += 0
    outcomes = gpu.run_parts(gpu.Options(out=tmp_path, dry_run=True, minutes=0.1, parts=("tests",)), clock)
    assert [outcome.state for outcome in outcomes] == ["not begun"]
    assert "| tests | not begun, 0 s |" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_is_shown_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "measure", broken)
    assert gpu.main(gpu.Options(out=tmp_path, dry_run=True, parts=("ceilings",))) == 1
    assert "## ceilings failed\n\n```\nRuntimeError: no kernel image\n```" in (tmp_path / "gpu.md").read_text()


def test_unknown_parts_are_refused_and_every_part_fits_into_the_time(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="expected parts among ceilings"):
        gpu.main(gpu.Options(out=tmp_path, parts=("speed",)))
    assert list(PARTS)[:3] == ["ceilings", "step", "tests"]


def test_shifted_products_are_the_convolution() -> None:
    windows, weight = torch.randn(3, 8, 8, 6, dtype=torch.float64), torch.randn(6, 1, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(shifted(windows, weight), convolve(windows, weight))
