"""The order in which combinations are asked, and what becomes of those that fail; nothing here is a real backend."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.backends.base import Outputs
from export.benchmarking.process import Started, WorkerError, WorkerProcess
from export.benchmarking.rounds import Entry, Plan, measure, steps
from export.runtimes.combinations import Combination

FP32 = Combination(runtime="onnxruntime", precision="fp32", file="model.onnx")
INT8 = Combination(runtime="onnxruntime", precision="int8", file="model.int8.onnx")
OPENVINO = Combination(runtime="openvino", precision="fp32", file="model.onnx", computes_in="fp32", hint="latency")


class FakeProcess(WorkerProcess):
    """Notes what it is asked; every run takes `seconds` an image; fails where it is told to."""

    def __init__(self, name: str, events: list[str], *, seconds: float = 0.5, fails: str | None = None) -> None:
        self.name, self.events, self.seconds, self.fails = name, events, seconds, fails
        self.values = np.array([[1.0, 2.0]], np.float32)

    def start(self) -> Started:
        self._note("start")
        return Started(seconds=2.0, peak_gb=0.5, description=f"fake {self.name}")

    def outputs(self, batch_size: int) -> Outputs:
        self._note(f"outputs {batch_size}")
        return {"logits": self.values}

    def warm_up(self, batch_size: int, runs: int) -> None:
        self._note(f"warm-up {batch_size} x{runs}")

    def turn(self, batch_size: int, at_least: float) -> tuple[list[float], float]:
        self._note(f"turn {batch_size}")
        return [self.seconds * batch_size], 0.5 + batch_size

    def predictions(self, data: Path, limit: int) -> Path:
        self._note("predictions")
        path = data / f"{self.name.replace(' ', '-')}.pickle"
        path.write_bytes(pickle.dumps([self.name]))
        return path

    def close(self) -> None:
        self.events.append(f"{self.name}: close")

    def _note(self, what: str) -> None:
        self.events.append(f"{self.name}: {what}")
        if self.fails == what:
            raise WorkerError(f"{what} does not work")


Opener = Callable[[Combination], WorkerProcess]


def run(
    fakes: dict[Combination, FakeProcess],
    *,
    batch_sizes: tuple[int, ...] = (1, 4),
    predict: Callable[[WorkerProcess], Path] | None = None,
    exact_outputs: bool = True,
) -> dict[Combination, Entry]:
    plan = Plan(batch_sizes=batch_sizes, rounds=2, warm_up=3, rest=lambda seconds: None)
    entries = measure(
        list(fakes), fakes.__getitem__, plan, lambda what, done: None, predict=predict, exact_outputs=exact_outputs
    )
    return {entry.combination: entry for entry in entries}


@pytest.fixture
def events() -> list[str]:
    return []


def test_all_start_then_all_warm_up_then_turns_are_interleaved_for_each_batch_size(events: list[str]) -> None:
    found = run({FP32: FakeProcess("a", events), OPENVINO: FakeProcess("b", events)})
    assert events[:4] == ["a: start", "b: start", "a: outputs 1", "b: outputs 1"]
    batches = [
        line
        for size in (1, 4)
        for line in (
            *(f"{name}: warm-up {size} x3" for name in "ab"),
            *(f"{name}: turn {size}" for name in "abba"),  # the order rotates
        )
    ]
    assert events[4:-2] == batches
    assert sorted(events[-2:]) == ["a: close", "b: close"]
    assert found[FP32].taken == {1: [[0.5], [0.5]], 4: [[2.0], [2.0]]}
    assert found[FP32].peak_gb == {1: 1.5, 4: 4.5}
    assert found[FP32].difference == 0 and found[FP32].problem is None


def test_progress_is_told_as_many_steps_as_there_are(events: list[str]) -> None:
    told: list[int] = []
    plan = Plan(batch_sizes=(1, 4), rounds=2, warm_up=1, rest=lambda seconds: None)
    fakes = {FP32: FakeProcess("a", events), OPENVINO: FakeProcess("b", events)}
    measure(list(fakes), fakes.__getitem__, plan, lambda what, done: told.append(done))
    assert sum(told) == steps(list(fakes), plan)


def test_one_that_does_not_start_is_out_and_closed_and_the_others_go_on(events: list[str]) -> None:
    found = run({FP32: FakeProcess("a", events, fails="start"), OPENVINO: FakeProcess("b", events)})
    assert found[FP32].problem == "start does not work" and not found[FP32].taken and found[FP32].started is None
    assert set(found[OPENVINO].taken) == {1, 4}
    assert "a: close" in events and "a: outputs 1" not in events


def test_one_that_cannot_even_be_opened_is_out(events: list[str]) -> None:
    def opener(combination: Combination) -> WorkerProcess:
        raise WorkerError("no memory")

    plan = Plan(batch_sizes=(1,), rounds=1, warm_up=1, rest=lambda seconds: None)
    (entry,) = measure([FP32], opener, plan, lambda what, done: None)
    assert entry.problem == "no memory"


@pytest.mark.parametrize("what", ["warm-up 4 x3", "turn 4"])
def test_one_that_fails_at_a_batch_size_keeps_the_figures_of_the_others(events: list[str], what: str) -> None:
    found = run({FP32: FakeProcess("a", events, fails=what), OPENVINO: FakeProcess("b", events)}, batch_sizes=(1, 4, 8))
    assert set(found[FP32].taken) == {1, 8} and found[FP32].failed == {4: f"{what} does not work"}
    assert found[FP32].problem is None
    assert set(found[OPENVINO].taken) == {1, 4, 8}
    assert events.count("a: turn 4") == (1 if what == "turn 4" else 0)  # asked no more after it failed


def test_full_precision_must_give_the_first_one_s_outputs_and_reduced_need_not(events: list[str]) -> None:
    fakes = {
        FP32: FakeProcess("a", events),
        OPENVINO: FakeProcess("b", events),
        INT8: FakeProcess("c", events),
    }
    for combination in (OPENVINO, INT8):
        fakes[combination].values = np.array([[1.0, 2.2]], np.float32)
    found = run(fakes)
    problem = found[OPENVINO].problem
    assert problem is not None and "its speed means nothing" in problem
    assert not found[OPENVINO].taken
    assert found[INT8].problem is None and found[INT8].difference == pytest.approx(0.1)
    assert run(fakes, exact_outputs=False)[OPENVINO].problem is None


def test_full_precision_is_not_held_against_a_reduced_one(events: list[str]) -> None:
    fakes = {INT8: FakeProcess("c", events), FP32: FakeProcess("a", events)}
    fakes[FP32].values = np.array([[1.0, 2.2]], np.float32)
    found = run(fakes)
    assert found[FP32].problem is None and found[FP32].difference == pytest.approx(0.1)


def test_outputs_that_are_not_finite_are_refused_in_every_precision(events: list[str]) -> None:
    fakes = {FP32: FakeProcess("a", events), INT8: FakeProcess("c", events)}
    fakes[INT8].values = np.array([[np.nan, 2.0]], np.float32)
    problem = run(fakes)[INT8].problem
    assert problem is not None and "NaN or infinity" in problem


def test_predictions_come_last_and_only_of_those_that_work(events: list[str], tmp_path: Path) -> None:
    fakes = {
        FP32: FakeProcess("a", events),
        OPENVINO: FakeProcess("b", events, fails="start"),
        INT8: FakeProcess("c", events, fails="predictions"),
    }
    found = run(fakes, predict=lambda competitor: competitor.predictions(tmp_path, 5))
    assert found[FP32].predictions == ["a"] and found[OPENVINO].predictions is None
    assert found[INT8].problem == "predictions does not work" and set(found[INT8].taken) == {1, 4}
    assert events.index("a: predictions") > max(index for index, event in enumerate(events) if "turn" in event)
