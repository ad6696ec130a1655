"""Training on a CUDA device: the CPU's numbers, in half precision too, and programs that go on where they were."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.dense_masked import DenseMaskedPretraining
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.models.convmae import nano
from convmae_deploy.models.depthwise import CONVOLUTIONS, GRADIENTS, by_convolution, by_products
from convmae_deploy.models.detector import build_detector, nano_fpn
from convmae_deploy.models.masking import draw_noise, keep_lowest
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.models.proposals import nms_apart, nms_by_group
from tests.engine.test_training_loop import PHOTOS
from tests.photo_folders import make_photo_folder

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_visible_cells_give_the_dense_loss_and_gradients(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = build_pretraining(nano(), PretrainingConfig()).cuda()
    images = torch.randn(4, 3, 128, 128, device="cuda")
    kept = keep_lowest(draw_noise(4, (128, 128), 16, None), 0.75).cuda()
    found = []
    for each in (model, DenseMaskedPretraining(model)):
        model.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = each(images, kept)
        loss.backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.append((float(loss), torch.cat(gradients)))
    (loss, gradient), (expected_loss, expected) = found
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert float((gradient - expected).norm() / expected.norm()) < 10 * tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_cells_convolution_and_its_gradient_are_those_of_float64(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    windows, weight, gradient = (
        torch.randn(shape, generator=generator) for shape in ((98, 8, 8, 32), (32, 1, 5, 5), (98, 4, 4, 32))
    )
    exact = [value.double() for value in (windows, weight, gradient)]
    there = [value.to("cuda", dtype) for value in (windows, weight, gradient)]
    expected = by_convolution(exact[0], exact[1], (0, 0)), by_products(exact[0], exact[2], (5, 5))
    found = [(way(there[0], there[1], (0, 0)), expected[0]) for way in CONVOLUTIONS.values()]
    found += [(way(there[0], there[2], (5, 5)), expected[1]) for way in GRADIENTS.values()]
    for values, reference in found:
        assert float((values.cpu().double() - reference).norm() / reference.norm()) < tolerance


def test_the_device_leaves_weights_alone_where_the_loss_is_not_finite() -> None:
    model = torch.nn.Linear(48, 1).cuda()
    optimizer = build_adamw_of(model)
    before = model.weight.detach().clone()
    model(PHOTOS.flatten(1).cuda()).sum().mul(math.nan).backward()
    optimizer.found_inf = torch.ones((), device="cuda")  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(model.weight, before)


def build_adamw_of(model: torch.nn.Module) -> torch.optim.AdamW:
    model.no_weight_decay = set  # type: ignore[assignment]
    return build_adamw(model, OptimisationConfig())


def test_the_detector_finds_what_it_finds_on_the_cpu() -> None:
    torch.manual_seed(0)
    config, heads = nano_fpn()
    model = build_detector(config, heads, num_classes=5).eval()
    images = torch.randn(2, 3, 256, 256)
    with torch.no_grad():
        expected = model(images)
        found = model.cuda()(images.cuda())
    for one, other in zip(found, expected, strict=True):
        assert len(one["scores"]) == pytest.approx(len(other["scores"]), abs=2)
        torch.testing.assert_close(one["scores"][:20].cpu(), other["scores"][:20], rtol=1e-3, atol=1e-4)
    generator = torch.Generator().manual_seed(0)
    corners = 500 * torch.rand(2000, 2, generator=generator)
    boxes = torch.cat((corners, corners + 80 * torch.rand(2000, 2, generator=generator) + 1), 1)
    scores, groups = torch.rand(2000, generator=generator), torch.randint(80, (2000,), generator=generator)
    there = nms_apart(boxes.cuda(), scores.cuda(), groups.cuda(), 0.5).cpu()
    assert torch.equal(there, nms_by_group(boxes, scores, groups, 0.5))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_pretraining_runs_and_goes_on_where_it_was(tmp_path: Path, precision: str) -> None:
    make_photo_folder(tmp_path / "photos")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "training.pretrain", "nano", "--data", str(tmp_path / "photos"), "--out", str(run)]
    settings = ["--precision", precision, "--batch-size", "4", "--micro-batch-size", "2", "--workers", "2"]
    for more in (["--epochs", "2"], ["--epochs", "3", "--resume"]):
        done = subprocess.run([*command, *settings, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 and "NaN" not in lines[-1]
