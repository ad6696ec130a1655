import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.tasks.drawing import draw_detections
from convmae_deploy.tasks.label_colours import palette
from convmae_deploy.tasks.masks import ObjectMask
from convmae_deploy.tasks.objects import Detection
from convmae_deploy.tasks.segmentation import draw_segmentation
from convmae_deploy.tasks.sliding_window import Segmentation

GREY = (100, 100, 100)
CLASSES = ("cat", "dog", "bird")


def detection(index: int, box: tuple[float, float, float, float], size: tuple[int, int] = (400, 600)) -> Detection:
    mask = ObjectMask(probabilities=np.ones((28, 28), np.float32), box=box, size=size)
    return Detection(label=CLASSES[index], index=index, score=0.875, box=box, mask=mask)


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def test_an_object_has_its_class_s_colour_as_outline_mask_and_tag() -> None:
    photo = Image.new("RGB", (600, 400), GREY)
    drawn = pixels(draw_detections(photo, [detection(1, (100, 100, 300, 200))], len(CLASSES)))
    colour = palette(3)[1]
    assert (drawn[100:102, 100:300] == colour).all() and (drawn[100:200, 298:300] == colour).all()
    assert np.abs(drawn[150, 200] - (0.55 * np.array(GREY) + 0.45 * colour)).max() <= 1
    assert (drawn[85:99, 101:140] == colour).all(axis=-1).any(), "the tag"
    assert (drawn[210:] == GREY).all() and (drawn[:70] == GREY).all()
    assert pixels(photo).max() == 100, "the photo itself is not drawn on"


def test_tags_stay_inside_the_picture_and_apart() -> None:
    photo = Image.new("RGB", (600, 400), GREY)
    corner, twin = detection(1, (550, 0, 600, 60)), detection(2, (550, 0, 600, 60))
    alone = pixels(draw_detections(photo, [corner], 3))
    both = pixels(draw_detections(photo, [corner, twin], 3))
    tag = (alone != GREY).any(axis=-1) & (np.arange(600) < 550)  # what hangs over the box on its left
    assert tag.any() and np.array_equal(both[tag], alone[tag]), "that of the better object is not covered"
    assert ((both != GREY).any(axis=-1) & (np.arange(600) < 550)).sum() > 1.5 * tag.sum()


def test_the_same_objects_give_the_same_picture_and_none_the_photo() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8))
    objects = [detection(0, (10, 20, 200, 300)), detection(2, (50.5, 60.25, 599, 399))]
    first, second = (pixels(draw_detections(photo, objects, 3)) for _ in range(2))
    assert np.array_equal(first, second) and not np.array_equal(first, pixels(photo))
    assert np.array_equal(pixels(draw_detections(photo, [], 3)), pixels(photo))


def test_a_small_photo_is_enlarged_so_that_its_labels_can_be_read() -> None:
    photo = Image.new("RGB", (60, 40), GREY)
    drawn = draw_detections(photo, [detection(1, (10, 10, 30, 20), (40, 60))], 3)
    assert drawn.size == (480, 320)
    assert (pixels(drawn)[80:82, 80:240] == palette(3)[1]).all()


def test_a_segmentation_is_overlaid_and_its_classes_are_named_below() -> None:
    labels = np.zeros((400, 600), np.uint8)
    labels[:, 400:] = 2
    drawn = draw_segmentation(
        Image.new("RGB", (600, 400), GREY), Segmentation(labels=labels, scores=np.zeros(3, np.float32)), CLASSES
    )
    assert drawn.width == 600 and 410 < drawn.height < 460
    found = pixels(drawn)
    assert np.abs(found[200, 500] - (0.4 * 100 + 0.6 * palette(3)[2])).max() <= 1
    legend = {tuple(level) for level in found[400:].reshape(-1, 3).tolist()}
    assert {tuple(palette(3)[index].tolist()) for index in (0, 2)} <= legend
    assert tuple(palette(3)[1].tolist()) not in legend, "a class that is nowhere"


def test_a_small_segmentation_is_enlarged_without_new_labels() -> None:
    labels = np.arange(6, dtype=np.uint16).reshape(2, 3) % 3
    photo = Image.new("RGB", (3, 2), GREY)
    drawn = draw_segmentation(photo, Segmentation(labels=labels, scores=np.zeros(3, np.float32)), CLASSES)
    assert drawn.width == 480
    assert len(np.unique(pixels(drawn)[:320].reshape(-1, 3), axis=0)) == 3
