"""PyTorch as a combination: float32 in and out, whatever it computes in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks import load_bundle
from export.benchmarking.pytorch import torch_output, torch_run
from export.runtimes.combinations import Combination
from tests.bundle_factory import make_bundle
from tests.export.conftest import CLASSES, SIZE

IMAGES = np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)


def test_a_model_takes_and_gives_float32_whatever_it_computes_in() -> None:
    found = torch_output(torch.nn.Flatten(), torch.bfloat16)(IMAGES)
    assert found.dtype == np.float32
    expected = IMAGES.reshape(2, -1)
    np.testing.assert_allclose(found, expected, rtol=0.01)
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0.0, 1e-5), ("bf16", 1e-5, 0.1)])
def test_the_checkpoint_s_model_is_run_in_the_precision_asked_for(
    checkpoint: Path, classifier: ConvMAEClassifier, tmp_path: Path, precision: str, least: float, most: float
) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "tiny", size=SIZE, classes=CLASSES))
    combination = Combination(runtime="eager", precision=precision)  # type: ignore[arg-type]
    run, description = torch_run(combination, bundle, checkpoint, torch.get_num_threads())
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(IMAGES)).numpy()
    difference = np.abs(run(IMAGES)["logits"] - expected).max() / np.abs(expected).max()
    assert least <= difference <= most
    assert description == f"torch {torch.__version__} (CPU)"
