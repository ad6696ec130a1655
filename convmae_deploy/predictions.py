"""What `convmae predict` makes of each photo or video, by task: rows of a table, a line of JSON, and files."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from convmae_deploy.backends.onnxruntime_backend import Device
from convmae_deploy.backends.starting import DEFAULT_RUNTIME, RuntimeOptions
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file, check_can_create
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.media.video_file import import_av
from convmae_deploy.program import readable
from convmae_deploy.tasks.clips import ClipViews
from convmae_deploy.tasks.detections import Detection, coco_result
from convmae_deploy.tasks.drawing import draw_detections, draw_segmentation
from convmae_deploy.tasks.label_colours import class_areas
from convmae_deploy.tasks.masks import label_png
from convmae_deploy.tasks.postprocess import Prediction
from convmae_deploy.tasks.predictor import (
    AnyPredictor,
    Classifier,
    Detector,
    Segmenter,
    VideoClassifier,
    open_predictor,
)

RESULTS_NAME = "results.json"
DEFAULT_TOP_K = 5
DEFAULT_THRESHOLD = 0.5
TAKEN_OPTIONS: dict[type[AnyPredictor], tuple[str, ...]] = {
    Classifier: ("--top-k",),
    Detector: ("--threshold", "--out"),
    Segmenter: ("--out",),
    VideoClassifier: ("--top-k", "--temporal-views", "--spatial-views"),
}
_JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How often a video is looked at; the answers are averaged."""

    temporal_views: int | None = None  # videos: clips spread over each (default: 1; the usual test on Kinetics has 5)
    spatial_views: int | None = None  # videos: crops along the longer side of the frames (default: 1; there 3)

    def views(self) -> ClipViews:
        """The numbers, with what is not given.

        Raises:
            ConvMAEError: one is less than 1.
        """
        temporal, spatial = (1 if count is None else count for count in (self.temporal_views, self.spatial_views))
        return ClipViews(temporal=temporal, spatial=spatial)

    def flags(self) -> dict[str, int | None]:
        """What was given, by the names of the flags."""
        return {"--temporal-views": self.temporal_views, "--spatial-views": self.spatial_views}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said about one file."""

    fields: dict[str, object]  # as JSON
    rows: Sequence[tuple[str, ...]]  # of the table, one text for each of the report's columns


class Report(Protocol):
    """Runs one file after the other and says what was found."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table, after the file's name."""

    def answer(self, file: Path) -> Answer:
        """Reads and runs one, and writes the files that belong to it.

        Raises:
            ConvMAEError: it cannot be read.
        """

    def finish(self) -> list[str]:
        """Writes what belongs to all files; returns sentences on what was written."""


class ClassReport:
    """The best classes."""

    columns = ("label", "score")

    def __init__(self, classify: Callable[[Path], list[Prediction]]) -> None:
        self.classify = classify

    def answer(self, file: Path) -> Answer:
        """Runs a photo or a video."""
        predictions = self.classify(file)
        return Answer(
            fields={"predictions": [vars(prediction) for prediction in predictions]},
            rows=[(prediction.label, f"{prediction.score:.4f}") for prediction in predictions],
        )

    def finish(self) -> list[str]:
        """Nothing is written."""
        return []


class ObjectReport:
    """Objects with boxes and masks: a picture for each photo, and all of them in COCO's results format.

    In that file `image_id` is the name of the photo without its suffix, as a number where it is one, as in COCO's
    photos; `category_id` is the one of the annotations that the model learnt from; boxes and masks are in pixels of the
    upright photo.
    """

    columns = ("label", "score", "box: left, top, right, bottom")

    def __init__(self, detector: Detector, threshold: float, out: Path | None) -> None:
        self.detector, self.threshold, self.out = detector, threshold, out
        manifest = detector.manifest
        self.category_ids = manifest.category_ids or range(1, len(manifest.classes) + 1)
        self.results: list[dict[str, object]] = []
        self.photos = 0

    def answer(self, file: Path) -> Answer:
        """Runs a photo and draws what was found."""
        image = read_photo(file).image
        found = self.detector.detect([image], threshold=self.threshold)[0]
        if self.out is not None:
            picture = draw_detections(image, found, len(self.detector.manifest.classes))
            _save_picture(picture, self.out / f"{file.stem}.objects.jpg")
            self.results += [coco_result(item, image_id(file), self.category_ids[item.index]) for item in found]
            self.photos += 1
        rows = [(item.label, f"{item.score:.4f}", _box_text(item)) for item in found]
        return Answer(fields={"detections": [_object_fields(item) for item in found]}, rows=rows)

    def finish(self) -> list[str]:
        """Writes the file of results."""
        if self.out is None:
            return []
        path = self.out / RESULTS_NAME
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.results), encoding="utf-8")
        objects = f"{len(self.results)} objects in {self.photos} photos"
        return [f"{readable(path)}: {objects}; their pictures beside it"]


class AreaReport:
    """Labels of pixels: a map and a coloured picture with a legend for each photo."""

    columns = ("label", "share of the pixels", "score")

    def __init__(self, segmenter: Segmenter, out: Path | None) -> None:
        self.segmenter, self.out = segmenter, out
        self.photos = 0

    def answer(self, file: Path) -> Answer:
        """Runs a photo and draws its labels."""
        image = read_photo(file).image
        classes = self.segmenter.manifest.classes
        found = self.segmenter.segment([image])[0]
        if self.out is not None:
            _save_picture(draw_segmentation(image, found, classes), self.out / f"{file.stem}.overlay.jpg")
            with atomic_file(self.out / f"{file.stem}.labels.png") as temporary:
                temporary.write_bytes(label_png(found.labels))
            self.photos += 1
        areas = class_areas(found.labels, len(classes))
        shares = {index: area / found.labels.size for index, area in areas.items()}
        segments = [
            {"label": classes[index], "score": float(found.scores[index]), "share": share}
            for index, share in shares.items()
        ]
        rows = [(classes[index], f"{share:.4f}", f"{found.scores[index]:.4f}") for index, share in shares.items()]
        return Answer(fields={"segments": segments}, rows=rows)

    def finish(self) -> list[str]:
        """Says where the files are."""
        return [] if self.out is None else [f"{readable(self.out)}: labels and pictures of {self.photos} photos"]


def make_report(
    predictor: AnyPredictor,
    files: Sequence[Path],
    *,
    out: Path | None,
    top_k: int | None,
    threshold: float | None,
    views: ViewOptions,
) -> Report:
    """What fits the predictor's task.

    Args:
        predictor: the model.
        files: photos or videos that will be run.
        out: the folder to write to; None: nothing is written.
        top_k: classes a photo or video, for classification alone; None: 5.
        threshold: the smallest score of an object, for detection alone; None: 0.5.
        views: of each video, for videos alone.

    Raises:
        ConvMAEError: an option is not for this task or out of range, two photos would get the same files, or videos
            cannot be read as PyAV is not installed.
    """
    _check_options(predictor, {"--top-k": top_k, "--threshold": threshold, "--out": out, **views.flags()})
    if top_k is not None and top_k < 1:
        raise ConvMAEError(f"--top-k must be at least 1; got {top_k}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConvMAEError(f"--threshold must be between 0 and 1; got {threshold:g}")
    if out is not None:
        check_names(files)
        check_can_create(out / RESULTS_NAME)
    best = DEFAULT_TOP_K if top_k is None else top_k
    if isinstance(predictor, Classifier):
        return ClassReport(lambda file: predictor.classify([read_photo(file).image], top_k=best)[0])
    if isinstance(predictor, VideoClassifier):
        import_av()
        chosen = views.views()
        return ClassReport(lambda file: predictor.classify(file, views=chosen, top_k=best))
    if isinstance(predictor, Detector):
        return ObjectReport(predictor, DEFAULT_THRESHOLD if threshold is None else threshold, out)
    return AreaReport(predictor, out)


def open_for_features(
    bundle: Path, views: ViewOptions, device: Device, threads: int | None, options: RuntimeOptions = DEFAULT_RUNTIME
) -> Classifier | VideoClassifier:
    """Starts a model that has features.

    Raises:
        ConvMAEError: as `open_predictor`, it has none, an option is not for it, or videos cannot be read as PyAV is not
            installed.
    """
    predictor = open_predictor(bundle, device=device, threads=threads, options=options)
    if not isinstance(predictor, Classifier | VideoClassifier):
        manifest = predictor.manifest
        raise ConvMAEError(
            f"{manifest.name} is a {manifest.task} model; give a classification bundle, of photos or videos"
        )
    _check_options(predictor, views.flags())
    if isinstance(predictor, VideoClassifier):
        import_av()
    return predictor


def _check_options(predictor: AnyPredictor, given: Mapping[str, object]) -> None:
    taken = TAKEN_OPTIONS[type(predictor)]
    for option, value in given.items():
        if value is not None and option not in taken:
            raise ConvMAEError(
                f"{option} says nothing to a {predictor.manifest.task} model, which takes {' and '.join(taken)}; "
                "leave it out"
            )


def image_id(file: Path) -> int | str:
    """Of a photo in COCO's format: its name without the suffix, as a number where it is one."""
    return int(file.stem) if file.stem.isascii() and file.stem.isdigit() else file.stem


def check_names(photos: Sequence[Path]) -> None:
    """Refuses photos whose files or ids would be the same.

    Raises:
        ConvMAEError: there are two such.
    """
    seen: dict[int | str, Path] = {}
    for photo in photos:
        other = seen.setdefault(image_id(photo), photo)
        if other is not photo:
            both = f"{readable(other)} and {readable(photo)}"
            raise ConvMAEError(f"with --out every photo needs a name of its own, but {both} would both be {photo.stem}")


def _save_picture(picture: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        picture.save(temporary, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)  # colours sharp, for text


def _object_fields(item: Detection) -> dict[str, object]:
    return {
        "label": item.label,
        "score": item.score,
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True)),
    }


def _box_text(item: Detection) -> str:
    return ", ".join(f"{edge:.0f}" for edge in item.box)
