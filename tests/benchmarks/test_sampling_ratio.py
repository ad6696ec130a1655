"""The benchmark of the sampling ratio: what it switches, compares and prints."""

from pathlib import Path

import pytest
import torch

from benchmarks.sampling_ratio import ADAPTIVE, PooledDifference, compared, main, pools_of, sampling
from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.roi_heads import SAMPLING_RATIO, PyramidRoIAlign
from tests.coco_folders import make_coco_folder
from tests.export.tiny_detectors import DETECTOR, ENCODER, SIZE, tiny_detector

LEVELS = [torch.arange(float(side)).square().expand(1, 1, side, side) for side in (16, 8, 4, 2)]
REGIONS = [torch.tensor([[2.0, 2.0, 34.0, 34.0]])]  # -0.5 + 2 / 4 = 0 to 8 cells of the first level
SIZES = [(64, 64)]


def detector_run(folder: Path, classes: tuple[str, ...]) -> Path:
    """A checkpoint of a detector with random weights."""
    record = CheckpointRecord(
        kind="detection",
        variant="custom",
        model=ENCODER,
        detector=DETECTOR,
        classes=classes,
        preprocessing=Letterbox(size=SIZE),
    )
    save_checkpoint(folder, tiny_detector(len(classes)).state_dict(), record)
    return folder


def test_the_ratio_is_changed_for_a_while_and_both_are_compared_on_the_same_regions() -> None:
    pool = PyramidRoIAlign(2)
    with compared({"head": pool}) as differences:
        ours = pool(LEVELS, REGIONS, SIZES)
    with sampling([pool], ADAPTIVE):
        adaptive = pool(LEVELS, REGIONS, SIZES)
    assert pool.sampling_ratio == SAMPLING_RATIO == 2
    # bins of 4 cells: samples at 1 and 3, 5 and 7; adaptive ones at 0.5, 1.5, ..., halfway between two squares
    torch.testing.assert_close(ours[0, 0, 0], torch.tensor([(1 + 9) / 2, (25 + 49) / 2]))
    torch.testing.assert_close(adaptive[0, 0, 0], torch.tensor([(0.5 + 2.5 + 6.5 + 12.5) / 4, 37.5]))
    found = differences["head"]
    assert (found.largest, found.largest_feature) == (0.5, 37)
    assert found.relative == pytest.approx((0.5**2 / ((5**2 + 37**2) / 2)) ** 0.5)
    assert torch.equal(pool(LEVELS, REGIONS, SIZES), ours) and not pool._forward_hooks


def test_no_region_differs_in_nothing() -> None:
    difference = PooledDifference()
    difference.add(torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 2, 2))
    assert (difference.largest, difference.relative) == (0, 0)


def test_both_heads_are_switched() -> None:
    model = tiny_detector()
    image = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    pools = list(pools_of(model).values())
    with torch.inference_mode():
        ours = model(image)[0]
        with sampling(pools[:1], ADAPTIVE):
            boxes_changed = model(image)[0]
        with sampling(pools[1:], ADAPTIVE):
            masks_changed = model(image)[0]
    assert not torch.equal(boxes_changed["scores"], ours["scores"])
    assert torch.equal(masks_changed["scores"], ours["scores"])
    assert not torch.equal(masks_changed["masks"], ours["masks"])


@pytest.mark.slow
def test_the_command_prints_both_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_coco_folder(tmp_path / "things")
    run = detector_run(tmp_path / "run", ("red thing", "blue thing"))
    main([str(run), "--data", str(photos), "--photos", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert ": 2 photos of train, fp32" in lines[0]
    assert [line.split()[:2] for line in lines if ", ours" in line or ", the" in line] == [
        ["2,", "ours"],
        ["0,", "the"],
    ]
    assert "box head" in lines[-2] and "mask head" in lines[-1] and "root mean square" in lines[-1]


def test_photos_of_other_categories_are_refused(tmp_path: Path) -> None:
    photos = make_coco_folder(tmp_path / "things")
    run = detector_run(tmp_path / "run", ("ant", "bee"))
    with pytest.raises(ConvMAEError, match="must have the categories of"):
        main([str(run), "--data", str(photos)])
