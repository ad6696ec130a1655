"""Detectors, and what they are held to on a user's data: COCO's AP, and the same objects in the same places."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as run_lengths

from convmae_deploy.backends.base import Outputs
from convmae_deploy.bundle.manifest import Manifest, Precision
from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.checkpoints.loading import load_detector
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.coco import CocoPhoto, CocoSplit, read_coco_photo, read_coco_split
from convmae_deploy.data.coco_file import has_annotations
from convmae_deploy.engine.coco_evaluation import IOU_TYPES, coco_metrics
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.tasks.base import PredictOptions, Predictor
from convmae_deploy.tasks.detection import coco_result
from export.graphs import static_detector
from export.graphs.half_precision import HalfParts
from export.graphs.static_detector import StaticDetector
from export.tasks.base import ExportTask, TaskExport, own_preprocessing
from export.verification.detection_sets import compare_detections
from export.verification.elementwise import TracedFile, Verification
from export.verification.inputs import Batch
from export.verification.task_data import Agreement, TaskData, TaskMetric, known_labels, say_findings, spread
from export.verification.verify_detector import own_inference, verify_detector

# not the mask head's transposed convolution: TensorRT for RTX has none in bfloat16
HALF = HalfParts(half=("encoder", "pyramid", "rpn.head.conv", "roi_heads.box_head", "roi_heads.mask_head"))
EVERYTHING = PredictOptions(threshold=0.0)
SURE = 0.5  # detections of at least this score must be found by both models
LEAST = 0.4  # what a partner of a sure one must score
SAME_PLACE = 0.9  # least IoU of partners

Result = dict[str, Any]  # of COCO's results format; without labels image ids count and categories are class indices


class DetectorTask(ExportTask):
    """A detector ready to be exported: near ties change places, so that detections compare as sets."""

    wrapper: StaticDetector
    model: ConvMAEDetector

    def verify(self, file: TracedFile, batches: Iterable[Batch]) -> Verification:
        """See `verify_detector`."""
        return verify_detector(self.wrapper, self.reference, file, batches)

    def check(self, expected: Outputs, found: Outputs, precision: Precision) -> str | None:
        """What is wrong with a batch's detections, in words; None: nothing."""
        return compare_detections([expected], [found], precision, self.model.roi_heads.score_thresh).problem


def detector_task(model: ConvMAEDetector, record: CheckpointRecord) -> ExportTask:
    """A detector; the reference of its detections is the model's own inference."""
    preprocessing = own_preprocessing("detection", record, Letterbox(size=record.model.input_size))
    return DetectorTask(
        task="detection",
        model=model,
        wrapper=StaticDetector(model.eval(), preprocessing.size).eval(),
        outputs=static_detector.OUTPUTS,
        half=HALF,
        reference=own_inference(model),
        record=record,
        preprocessing=preprocessing,
        probes=static_detector.PROBES,
        max_batch=2,  # a batch of detections takes long, and photos come singly
    )


class DetectedData(TaskData[list[Result]]):
    """Photos for detectors; an answer is the photo's detections in COCO's results format."""

    def __init__(self, files: Sequence[Path], split: CocoSplit | None, manifest: Manifest) -> None:
        super().__init__(files, labelled=split is not None)
        self.split = split
        if split is None:
            self._categories = dict(enumerate(range(len(manifest.classes))))
        else:
            ids = dict(zip(split.classes, split.category_ids, strict=True))
            self._categories = {index: ids[name] for index, name in enumerate(manifest.classes) if name in ids}

    def _photo(self, index: int) -> CocoPhoto | None:
        return None if self.split is None else self.split.photos[index]

    def read(self, index: int, predictor: Predictor) -> Image.Image:
        """The photo; as its annotations mean it, where it has some."""
        photo = self._photo(index)
        return read_photo(self.files[index]).image if photo is None else read_coco_photo(photo)

    def predict(
        self, predictor: Predictor, indices: Sequence[int], samples: Sequence[Image.Image]
    ) -> list[list[Result]]:
        """The detections of each; those of classes that the data do not have are left out."""
        predictions = []
        for index, found in zip(indices, predictor.predict_each(samples, EVERYTHING), strict=True):
            photo = self._photo(index)
            image_id = index if photo is None else photo.id
            known = [one for one in found if one.index in self._categories]
            predictions.append([coco_result(one, image_id, self._categories[one.index]) for one in known])
        return predictions

    def metrics(self, predictions: Sequence[list[Result] | None]) -> tuple[TaskMetric, ...]:
        """COCO's AP of boxes and of masks, over the photos that could be decoded.

        Raises:
            ConvMAEError: these photos have no object to be found.
        """
        if self.split is None:
            return ()
        seen = [index for index, one in enumerate(predictions) if one is not None]
        truth = self.split.subset(seen).ground_truth()
        results = [result for one in predictions if one is not None for result in one]
        metrics = []
        for kind in IOU_TYPES:
            numbers = coco_metrics(truth, results, kind)
            if "ap" not in numbers:
                raise ConvMAEError(f"none of the {len(seen)} photos holds an object to be found; choose other data")
            metrics.append(TaskMetric(name=f"{kind} AP", value=100 * numbers["ap"], samples=len(seen)))
        return tuple(metrics)

    def agreement(self, expected: Sequence[list[Result] | None], found: Sequence[list[Result] | None]) -> Agreement:
        """On every sure detection of either side: the other has one of its class in its place."""
        decided = agreeing = 0
        for before, after in zip(expected, found, strict=True):
            if before is not None and after is not None:
                for sure, others in ((before, after), (after, before)):
                    partners = [_has_partner(one, others) for one in sure if one["score"] >= SURE]
                    decided += len(partners)
                    agreeing += sum(partners)
        return Agreement(
            counted=f"detections with a score of {SURE} or more", decided=decided, agreeing=agreeing, by_chance=0.02
        )


def _has_partner(detection: Result, others: Sequence[Result]) -> bool:
    """Whether one of `others` is the same object."""
    boxes = [
        other["bbox"]
        for other in others
        if other["score"] >= LEAST and other["category_id"] == detection["category_id"]
    ]
    if not boxes:
        return False
    overlaps = run_lengths.iou([detection["bbox"]], boxes, [0] * len(boxes))  # (1, boxes)
    return bool(overlaps.max() >= SAME_PLACE)


def read_detected(data: Path, manifest: Manifest, split: str, limit: int | None) -> TaskData[Any]:
    """ROOT/annotations/instances_<split>.json, COCO's own folders, or any folder of photos."""
    if not has_annotations(data):
        return DetectedData(spread(find_photos([data]), limit), None, manifest)
    coco = read_coco_split(data, split)
    say_findings(data, coco.findings)
    known_labels((), coco.classes, manifest, data)
    chosen = coco.subset(spread(range(len(coco.photos)), limit))
    return DetectedData([photo.path for photo in chosen.photos], chosen, manifest)


DETECTION = TaskExport(
    kinds=("detection",),
    load=load_detector,
    assemble=detector_task,
    read_data=read_detected,
    unlabelled=lambda files, manifest: DetectedData(files, None, manifest),
    calibrated=32,
)
