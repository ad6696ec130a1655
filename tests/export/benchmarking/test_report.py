"""The sentences, warnings, tables and the plot of a benchmark, from figures worked out by hand."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from convmae_deploy.errors import ConvMAEError
from export.benchmarking import tables as benchmark_tables
from export.benchmarking.plot import draw_record
from export.benchmarking.process import Started
from export.benchmarking.report import (
    Advice,
    BenchmarkRecord,
    CombinationRecord,
    Judged,
    LeftOutRecord,
    Row,
    advise,
    combination_records,
    machine_facts,
    noise_warnings,
    rows_of,
)
from export.benchmarking.rounds import Entry
from export.benchmarking.timing import summarise
from export.runtimes.combinations import Combination

ROUNDS = 10
ONNX = Combination(runtime="onnxruntime", precision="fp32", file="model.onnx")
INT8 = Combination(runtime="onnxruntime", precision="int8", file="model.int8.onnx")
BF16 = Combination(runtime="openvino", precision="fp32", file="model.onnx", computes_in="bf16", hint="latency")


def row(combination: Combination, batch_size: int, *milliseconds: float) -> Row:
    """A row of rounds of one run each, which take these times again and again."""
    taken = [[milliseconds[turn % len(milliseconds)] / 1000] for turn in range(ROUNDS)]
    timing = summarise(taken, batch_size)
    return Row(combination=combination.name, batch_size=batch_size, timing=timing, peak_gb=0.5, problem=None)


def described(combination: Combination, **changes: Any) -> CombinationRecord:
    entry = Entry(combination=combination, started=Started(seconds=1.0, peak_gb=0.25, description="fake"))
    (record,) = combination_records([entry], Judged())
    return record.model_copy(update=changes)


def record_of(
    rows: tuple[Row, ...], *, combinations: tuple[CombinationRecord, ...] | None = None, **changes: Any
) -> BenchmarkRecord:
    combinations = combinations or (described(ONNX), described(BF16), described(INT8))
    fields: dict[str, Any] = {
        "bundle": "mine",
        "task": "classification",
        "variant": "base",
        "inputs": "made pictures",
        "rounds": ROUNDS,
        "warm_up": 3,
        "threads": 2,
        "machine": machine_facts(2) | {"pinned": "to cores 0, 1"},
        "warnings": (),
        "counted": None,
        "combinations": combinations,
        "rows": rows,
        "left_out": (LeftOutRecord(name="TensorRT", reason="it needs an NVIDIA GPU"),),
        "advice": advise(rows, combinations, "image", None),
    }
    return BenchmarkRecord(**(fields | changes))


def test_the_fastest_at_one_image_and_the_most_images_at_any_batch_size_are_picked() -> None:
    rows = (row(ONNX, 1, 160), row(BF16, 1, 50), row(INT8, 1, 80), row(ONNX, 8, 1280), row(INT8, 8, 200))
    advice = advise(rows, [described(ONNX), described(BF16), described(INT8)], "image", None)
    assert advice.latency == (
        "For latency pick OpenVINO fp32 in bf16: 50 ms for one image at the median, "
        "3.20 times as fast as ONNX Runtime fp32."
    )
    assert advice.throughput == (
        "For throughput pick ONNX Runtime int8 at batch 8: 40 images/s, 6.40 times as fast as ONNX Runtime fp32."
    )


def test_those_that_are_not_told_apart_from_the_best_are_named() -> None:
    near = (49, 51, 49, 51, 49, 51, 49, 51, 49, 51)  # the best wins every second round
    rows = (row(BF16, 1, 50), row(INT8, 1, *near[:-1], 60.0), row(ONNX, 1, 160))
    advice = advise(rows, [described(ONNX), described(BF16), described(INT8)], "image", None)
    assert advice.latency.endswith("; within the noise of 10 rounds: ONNX Runtime int8 (50 ms).")
    assert advice.throughput.endswith("; within the noise of 10 rounds: ONNX Runtime int8 (20 at batch 1).")


def test_a_better_batch_size_of_the_same_combination_is_no_rival() -> None:
    rows = (row(ONNX, 2, 100), row(ONNX, 4, 199))
    advice = advise(rows, [described(ONNX)], "clip", None)
    assert advice.latency == "For latency pick ONNX Runtime fp32: 100 ms for a batch of 2 at the median."
    assert advice.throughput == "For throughput pick ONNX Runtime fp32 at batch 4: 20.1 clips/s."


def test_a_fast_one_that_answers_otherwise_comes_with_its_agreement() -> None:
    combinations = [described(ONNX, agreement=1.0), described(INT8, agreement=0.975)]
    advice = advise((row(ONNX, 1, 160), row(INT8, 1, 80)), combinations, "image", "photos that are no near tie")
    for text in (advice.latency, advice.throughput):
        assert text.endswith("; it gives the answers of ONNX Runtime fp32 on 97.5% of the photos that are no near tie.")


def test_nothing_measured_is_nothing_to_pick() -> None:
    failed = Row(combination=ONNX.name, batch_size=1, timing=None, peak_gb=None, problem="it broke")
    advice = advise((failed,), [described(ONNX)], "image", None)
    assert "nothing was measured" in advice.latency and "nothing was measured" in advice.throughput


@pytest.mark.parametrize(("load", "loaded"), [(None, False), (0.9, False), (1.0, False), (1.1, True)])
def test_a_machine_with_more_load_than_half_its_cores_is_warned_of(load: float | None, loaded: bool) -> None:
    warnings = noise_warnings(load, 2, (row(ONNX, 1, 160),))
    assert len(warnings) == loaded
    assert not loaded or "load average was 1.1 on 2 cores" in warnings[0]


def test_rows_that_spread_are_warned_of_with_the_worst() -> None:
    # half the rounds take 100 and half 130: so much are the 10th percentile and the 90th; the median is 115
    rows = (row(ONNX, 1, 100, 130), row(BF16, 8, 50), row(INT8, 1, 100, 105))
    (warning,) = noise_warnings(0.0, 2, rows)
    assert warning.startswith("1 of 3 rows spread") and "ONNX Runtime fp32 at batch 1 by 26%" in warning


def test_a_combination_has_a_row_for_each_batch_size_measured_or_failed() -> None:
    entry = Entry(combination=ONNX, failed={8: "no memory"}, taken={1: [[0.1], [0.1]]}, peak_gb={1: 0.5, 8: 0.75})
    out = Entry(combination=INT8, problem="it did not start")
    found = rows_of([entry, out], (1, 8))
    assert [(one.combination, one.batch_size, one.problem) for one in found] == [
        (ONNX.name, 1, None),
        (ONNX.name, 8, "no memory"),
    ]
    assert found[0].timing is not None and found[0].timing.p50_ms == 100 and found[0].peak_gb == 0.5


def test_a_record_is_complete_unless_something_failed_or_nothing_was_measured() -> None:
    good = row(ONNX, 1, 160)
    failed = Row(combination=ONNX.name, batch_size=8, timing=None, peak_gb=None, problem="no memory")
    assert record_of((good,)).complete
    assert not record_of((good, failed)).complete
    assert not record_of((good,), combinations=(described(ONNX), described(INT8, problem="broken"))).complete
    assert not record_of((), combinations=(described(ONNX),), advice=Advice(latency="", throughput="")).complete


def test_the_record_survives_json_and_its_fields_are_these() -> None:
    record = record_of((row(ONNX, 1, 160),))
    assert BenchmarkRecord.model_validate_json(record.model_dump_json()) == record
    schema = BenchmarkRecord.model_json_schema()
    assert schema["required"] == [
        "bundle", "task", "variant", "inputs", "rounds", "warm_up", "threads", "machine", "warnings", "counted",
        "combinations", "rows", "left_out", "advice",
    ]  # fmt: skip
    assert list(schema["$defs"]["Statistics"]["properties"]) == [
        "runs", "p50_ms", "p90_ms", "p99_ms", "images_per_second", "spread", "round_ms",
    ]  # fmt: skip
    assert list(schema["$defs"]["Row"]["properties"]) == ["combination", "batch_size", "timing", "peak_gb", "problem"]


def test_the_terminal_shows_tables_failures_reasons_warnings_and_what_to_pick() -> None:
    failed = Row(combination=INT8.name, batch_size=1, timing=None, peak_gb=None, problem="it [broke]")
    rows = (row(ONNX, 1, 160, 170), failed, row(BF16, 8, 1234.5))
    combinations = (
        described(ONNX, agreement=1.0, metrics={"top-1": 87.0}),
        described(INT8, agreement=0.5),
        described(BF16),
    )
    advice = Advice(latency="L.", throughput="T.")
    record = record_of(rows, combinations=combinations, counted="photos", warnings=("It was loud.",), advice=advice)
    console = Console(width=80, record=True, file=io.StringIO())
    benchmark_tables.print_record(record, console)
    lines = console.export_text().splitlines()
    cells = [line.split() for line in lines]
    assert ["ONNX", "Runtime", "fp32", "165.00", "170.00", "170.00", "6.1", "6%", "0.50"] in cells
    assert ["ONNX", "Runtime", "int8", "failed"] in cells
    assert ["OpenVINO", "fp32", "in", "bf16", "1234", "1234", "1234", "6.5", "0%", "0.50"] in cells
    assert ["ONNX", "Runtime", "fp32", "1.00", "0.25", "100.00%", "87.00"] in cells
    for line in (
        "Failed: ONNX Runtime int8 at batch 1: it [broke]",
        "Not measured: TensorRT: it needs an NVIDIA GPU",
        "Warning: It was loud.",
        "L.",
        "T.",
    ):
        assert line in lines
    assert any("pinned: to cores 0, 1" in line for line in lines)
    assert "preprocessing" in " ".join(lines)
    assert not any("…" in line for line in lines)


@pytest.mark.slow
def test_the_plot_is_a_picture_with_every_combination(tmp_path: Path) -> None:
    rows = (row(ONNX, 1, 160, 190), row(BF16, 1, 50), row(INT8, 1, 80), row(ONNX, 8, 1280), row(BF16, 8, 300))
    draw_record(tmp_path / "all.png", record_of(rows))
    draw_record(tmp_path / "one.png", record_of(rows[:1]))
    with Image.open(tmp_path / "all.png") as picture, Image.open(tmp_path / "one.png") as smaller:
        assert picture.format == "PNG" and picture.height > smaller.height
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in pixels[::3]}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # of both batch sizes
    assert 0.02 < (pixels != 255).any(axis=1).mean() < 0.5


def test_nothing_measured_is_nothing_to_draw(tmp_path: Path) -> None:
    failed = Row(combination=ONNX.name, batch_size=1, timing=None, peak_gb=None, problem="it broke")
    with pytest.raises(ConvMAEError, match="nothing was measured"):
        draw_record(tmp_path / "plot.png", record_of((failed,)))
    assert not (tmp_path / "plot.png").exists()
