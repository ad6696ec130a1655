"""The verification of models of every task, each on labelled data of its own layout, from the bundle to the page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from export.verify import main
from tests.bundle_factory import make_detection_bundle, make_segmentation_bundle, make_video_bundle
from tests.coco_folders import make_coco_folder
from tests.segmentation_folders import make_segmentation_folder
from tests.video_folders import make_motion_folder

TASKS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path], tuple[str, ...]]] = {
    "detection": (
        lambda path: make_detection_bundle(path, classes=("red thing", "blue thing", "bird")),
        lambda path: make_coco_folder(path, photos=3),
        ("box AP", "mask AP", "on 3 photos; agreement on detections with a score of 0.5 or more"),
    ),
    "segmentation": (
        lambda path: make_segmentation_bundle(path, classes=("left", "right", "square")),
        make_segmentation_folder,
        ("mIoU", "30720 of 30720", "on 4 photos; agreement on pixels"),
    ),
    "video": (
        make_video_bundle,
        lambda path: make_motion_folder(path, val=2),
        ("top-1", "4 of 4", "on 4 videos; agreement on videos that are no near tie"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_is_held_in_openvino_against_its_own_graph_with_the_metric_of_its_task(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    make, make_data, told = TASKS[task]
    bundle, data, page = make(tmp_path / "bundle"), make_data(tmp_path / "data"), tmp_path / "report.html"
    assert main([str(bundle), "--data", str(data), "--runtime", "openvino", "--report", str(page)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(text in printed for text in told), printed
    assert "All holds: 1 file on 1 runtime" in page.read_text(encoding="utf-8")
