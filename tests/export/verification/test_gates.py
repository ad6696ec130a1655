import numpy as np
import pytest

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import Precision
from export.verification.gates import EXACT_DB, FP32, GATES, Tolerance, compare, worst_of

LOOSE = Tolerance(absolute=1e9, relative=0, cosine=-1)


@pytest.fixture
def reference() -> FloatArray:
    return np.random.default_rng(0).standard_normal((3, 4, 5), dtype=np.float32)


def test_equal_arrays_pass_without_any_difference(reference: FloatArray) -> None:
    comparison = compare(reference, reference.copy(), FP32)
    assert comparison.problem is None
    assert (comparison.max_abs, comparison.max_rel, comparison.excess) == (0, 0, 0)
    assert comparison.cosine == pytest.approx(1)


def test_a_difference_just_inside_the_gate_passes_and_just_outside_fails() -> None:
    reference = np.full((1, 2), 3.0, dtype=np.float32)
    allowed = 1e-4 + 1e-3 * 3
    inside, outside = reference.copy(), reference.copy()
    inside[0, 0] += 0.99 * allowed
    outside[0, 0] += 1.01 * allowed
    assert compare(reference, inside, FP32).problem is None
    assert compare(reference, outside, FP32).problem is not None
    assert compare(reference, outside, FP32).excess == pytest.approx(1.01, rel=1e-3)


def test_one_wrong_entry_fails_and_its_image_is_named(reference: FloatArray) -> None:
    found = reference.copy()
    found[2, 1, 1] += 0.01
    comparison = compare(reference, found, FP32)
    assert comparison.worst_image == 2
    assert comparison.max_abs == pytest.approx(0.01, rel=1e-3)
    assert comparison.problem is not None and "off by" in comparison.problem


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["the graph", "PyTorch"])
def test_a_value_that_is_not_finite_fails_on_either_side(reference: FloatArray, value: float, side: str) -> None:
    spoiled = reference.copy()
    spoiled[1, 0, 0] = value
    pair = (reference, spoiled) if side == "the graph" else (spoiled, reference)
    comparison = compare(*pair, FP32)
    assert comparison.problem == f"{side} gives NaN or infinity"
    assert comparison.worst_image == 1
    assert comparison.excess == np.inf


def test_a_wrong_shape_fails(reference: FloatArray) -> None:
    assert compare(reference, reference[:2], FP32).problem == "its shape is (2, 4, 5) instead of (3, 4, 5)"


def test_the_cosine_gate_fails_where_every_entry_is_within_its_allowance() -> None:
    reference = np.full((2, 8), 1e-5, dtype=np.float32)
    found = reference.copy()
    found[1, ::2] = -1e-5
    comparison = compare(reference, found, FP32)
    assert comparison.excess < 1
    assert comparison.worst_image == 1
    assert comparison.problem is not None and "cosine" in comparison.problem


def test_a_zero_output_is_only_like_another_zero_output() -> None:
    zeros, small = np.zeros((1, 4), dtype=np.float32), np.full((1, 4), 1e-6, dtype=np.float32)
    assert compare(zeros, zeros, FP32).problem is None
    assert compare(small, zeros, FP32).cosine == 0


def test_another_top_class_fails_outside_the_margin_and_not_within() -> None:
    reference = np.array([[1.0, 0.0], [0.5, 0.5 + 1e-5]], dtype=np.float32)
    found = reference[:, ::-1].copy()
    tolerance = Tolerance(absolute=1e-4, relative=1e-3, cosine=-1)
    both = compare(reference, found, tolerance, top1=True)
    assert (both.images_decided, both.images_agreeing) == (1, 0)
    near_tie = compare(reference[1:], found[1:], tolerance, top1=True)
    assert (near_tie.images_decided, near_tie.problem) == (0, None)


def test_the_top_class_is_a_gate_of_its_own() -> None:
    # A margin of 0 and no limit on the differences: only the order of the logits is left to object to.
    reference = np.array([[1.0, 0.0]], dtype=np.float32)
    comparison = compare(
        reference, reference[:, ::-1].copy(), Tolerance(absolute=0.4, relative=0, cosine=-1), top1=True
    )
    assert comparison.images_decided - comparison.images_agreeing == 1
    lenient = compare(reference, reference[:, ::-1].copy(), LOOSE, top1=True)
    assert lenient.problem is None  # a tolerance that allows anything decides no image


def test_a_single_class_has_no_rival_for_the_top() -> None:
    reference = np.ones((2, 1), dtype=np.float32)
    assert compare(reference, reference, FP32, top1=True).images_decided == 0


def test_the_report_row_keeps_the_worst_of_all_inputs_and_its_name(reference: FloatArray) -> None:
    slightly, badly = reference + np.float32(1e-5), reference + np.float32(0.1)
    row = worst_of([("one", compare(reference, slightly, FP32)), ("two", compare(reference, badly, FP32))])
    assert row.worst_input == "two"
    assert row.max_abs == pytest.approx(0.1, rel=1e-3)
    assert row.excess > 1
    assert not row.passed
    assert worst_of([("one", compare(reference, slightly, FP32))]).passed


def test_the_report_row_counts_top_classes_over_all_inputs() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    half = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    row = worst_of(
        [("one", compare(reference, half, FP32, top1=True)), ("two", compare(reference, reference, FP32, top1=True))]
    )
    assert row.top1_agreement == pytest.approx(0.75)


def noisy(reference: FloatArray, decibels: float) -> FloatArray:
    noise = np.random.default_rng(1).standard_normal(reference.shape)
    rms = np.sqrt(np.square(reference).mean(axis=(1, 2), keepdims=True) / np.square(noise).mean((1, 2), keepdims=True))
    return np.asarray(reference + rms * noise * 10 ** (-decibels / 20), dtype=np.float32)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_noise_just_below_what_a_precision_may_have_passes_and_just_above_fails(
    reference: FloatArray, precision: Precision
) -> None:
    gate = GATES[precision]
    passed = compare(reference, noisy(reference, gate.snr_db + 0.1), gate)
    assert passed.problem is None and passed.snr_db == pytest.approx(gate.snr_db + 0.1, abs=1e-2)
    assert passed.excess == pytest.approx(10 ** (-0.1 / 20), rel=1e-3)
    failed = compare(reference, noisy(reference, gate.snr_db - 0.1), gate)
    assert failed.problem is not None and "signal-to-noise" in failed.problem and failed.excess > 1


def test_the_noisiest_image_counts(reference: FloatArray) -> None:
    found = reference.copy()
    found[1] = noisy(reference, 30)[1]
    comparison = compare(reference, found, GATES["fp16"])
    assert comparison.worst_image == 1 and comparison.snr_db == pytest.approx(30, abs=1e-2)
    row = worst_of([("noisy", comparison), ("equal", compare(reference, reference, GATES["fp16"]))])
    assert row.snr_db == pytest.approx(30, abs=1e-2) and row.worst_input == "noisy"


def test_equal_arrays_have_a_finite_ratio_and_a_zero_output_none_but_its_own(reference: FloatArray) -> None:
    assert compare(reference, reference, GATES["fp16"]).snr_db == EXACT_DB
    zeros = np.zeros_like(reference)
    assert compare(zeros, zeros, GATES["fp16"]).problem is None
    assert compare(zeros, reference, GATES["fp16"]).snr_db == -EXACT_DB


def test_noise_may_swap_the_top_two_within_the_margin_alone() -> None:
    gate = GATES["fp16"]
    apart = 2 * 2**0.5 * 0.01 * 1.0  # of logits whose root mean square is 1
    for distance, decided in ((0.95 * apart, 0), (1.05 * apart, 1)):
        reference = np.array([[1 + distance / 2, 1 - distance / 2]], dtype=np.float32)
        comparison = compare(reference, reference[:, ::-1].copy(), gate, top1=True)
        assert (comparison.images_decided, comparison.images_agreeing) == (decided, 0)


def test_a_small_share_of_cells_may_have_another_top_class() -> None:
    reference = np.zeros((1, 2, 1000), dtype=np.float32)
    reference[:, 0] = 1
    found = reference.copy()
    found[0, :, :5] = reference[0, ::-1, :5]
    lenient = Tolerance(snr_db=10.0, cosine=0.9, top1=0.995)
    assert compare(reference, found, lenient, top1=True).problem is None
    found[0, :, 5] = reference[0, ::-1, 5]
    problem = compare(reference, found, lenient, top1=True).problem
    assert problem == "6 of 1000 have another top class"


def test_int8_is_reported_unless_it_is_not_finite(reference: FloatArray) -> None:
    comparison = compare(reference, -reference, GATES["int8"], top1=True)
    assert (comparison.problem, comparison.excess, comparison.images_decided) == (None, 0, 0)
    assert compare(reference, reference * np.float32(np.nan), GATES["int8"]).problem is not None
    assert GATES["int8"].describe().startswith("reported only")
