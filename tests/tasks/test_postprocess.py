import numpy as np
import pytest
import torch

from convmae_deploy.tasks.postprocess import Prediction, scores, top_k


def test_scores_equal_torchs() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 7), dtype=np.float32) * 10
    tensor = torch.from_numpy(logits)
    np.testing.assert_allclose(scores(logits, "softmax"), tensor.softmax(-1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scores(logits, "sigmoid"), tensor.sigmoid(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(scores(logits, "none"), logits)


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_extreme_logits_overflow_nowhere(function: str) -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], dtype=np.float32)
    with np.errstate(over="raise", invalid="raise"):
        result = scores(logits, function)  # type: ignore[arg-type]
    assert result.dtype == np.float32
    assert ((result >= 0) & (result <= 1)).all()


def test_the_best_come_first_and_equal_scores_keep_the_order_of_the_classes() -> None:
    found = top_k(np.array([0.1, 0.4, 0.1, 0.4], dtype=np.float32), ["a", "b", "c", "d"], 3)
    assert [prediction.label for prediction in found] == ["b", "d", "a"]
    assert found[0] == Prediction(label="b", score=float(np.float32(0.4)), index=1)
    assert type(found[0].score) is float


def test_more_than_all_classes_are_all_classes() -> None:
    assert len(top_k(np.array([0.2, 0.8]), ["a", "b"], 1_000_000_000)) == 2
