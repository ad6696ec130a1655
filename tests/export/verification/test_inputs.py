import numpy as np
import pytest
from PIL import Image

from convmae_deploy.bundle.manifest import InputSpec, SideRange
from convmae_deploy.bundle.preprocessing import Letterbox, Preprocessing, standard_clips
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.preprocess import preprocess
from convmae_deploy.tasks.video import VideoClassifier
from export.verification.inputs import constant_images, verification_batches
from export.verification.samples import Samples, made_clips, made_photos

CLIP_SPEC = standard_clips((32, 64), frames=4, stride=1)
SPEC = Preprocessing(resize=(73, 73), crop=(64, 64))


def up_to(largest: int) -> InputSpec:
    return InputSpec(shape=(3, *SPEC.crop), max_batch=largest)


def test_batches_cover_every_kind_at_one_two_and_the_largest_and_sizes_in_between() -> None:
    batches = verification_batches(Classifier, SPEC, Samples("photos", made_photos(2)), up_to(32))
    sizes = {kind: [len(b.images) for b in batches if b.name.startswith(kind)] for kind in ("random", "photos")}
    assert sizes == {"random": [1, 2, 32, 3, 17], "photos": [1, 2, 32]}
    constants = [len(b.images) for b in batches if not b.name.startswith(("random", "photos"))]
    assert constants == [1, 1, 1, 1, 2, 2, 32]
    assert len({b.name for b in batches}) == len(batches)
    assert all(b.images.shape[1:] == (3, 64, 64) and b.images.dtype == np.float32 for b in batches)


@pytest.mark.parametrize(("largest", "sizes"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (4, {1, 2, 3, 4})])
def test_no_batch_is_larger_than_the_largest(largest: int, sizes: set[int]) -> None:
    assert {
        len(batch.images)
        for batch in verification_batches(Classifier, SPEC, Samples("photos", made_photos(1)), up_to(largest))
    } == sizes


def test_batches_are_the_same_every_time() -> None:
    first, second = (
        verification_batches(Classifier, SPEC, Samples("photos", made_photos(2)), up_to(2)) for _ in range(2)
    )
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, second, strict=True))


def test_photo_batches_hold_what_the_runtime_makes_of_the_photos() -> None:
    photos = made_photos(2)
    (batch,) = (
        b
        for b in verification_batches(Classifier, SPEC, Samples("photos", photos), up_to(2))
        if b.name == "photos batch 2"
    )
    assert np.array_equal(batch.images, np.stack([preprocess(photo, SPEC) for photo in photos]))


def test_black_and_white_are_the_extremes_that_a_photo_can_have() -> None:
    constants = constant_images(SPEC)
    for name, colour in (("black", (0, 0, 0)), ("white", (255, 255, 255))):
        np.testing.assert_allclose(constants[name], preprocess(Image.new("RGB", (90, 80), colour), SPEC), rtol=1e-6)
    assert (constants["zeros"] == 0).all() and (constants["ones"] == 1).all()


def test_a_detector_is_tried_on_more_photos_than_the_largest_batch_takes() -> None:
    batches = verification_batches(Detector, Letterbox(size=(32, 64)), Samples("photos", made_photos(10)), up_to(3))
    sizes = {batch.name: len(batch.images) for batch in batches if batch.name.startswith("photos")}
    assert sizes == {
        "photos batch 1": 1,
        "photos batch 2": 2,
        "photos batch 3": 3,
        "photos 4 to 6": 3,
        "photos 7 to 8": 2,
    }
    pixels = np.concatenate([batch.images for batch in batches if " to " in batch.name])
    assert len(np.unique(pixels.reshape(5, -1), axis=0)) == 5


def test_batches_of_clips_have_a_time_axis() -> None:
    batches = verification_batches(
        VideoClassifier, CLIP_SPEC, Samples("made clips", made_clips(CLIP_SPEC, 2)), up_to(3)
    )
    assert {len(batch.images) for batch in batches} == {1, 2, 3}
    assert {batch.images.shape[1:] for batch in batches} == {(3, 4, 32, 64)}
    (two,) = (batch for batch in batches if batch.name == "made clips batch 2")
    assert np.array_equal(two.images, np.stack(made_clips(CLIP_SPEC, 2)))
    white = constant_images(CLIP_SPEC)["white"]
    assert np.ptp(white, axis=(1, 2, 3)).max() == 0 and white[2].max() == pytest.approx((1 - 0.406) / 0.225)


def test_a_graph_for_every_size_is_tried_at_the_corners_of_its_range_and_inside_of_it() -> None:
    limits = up_to(2).model_copy(update={"sides": SideRange(largest=160)})
    batches = verification_batches(Classifier, SPEC, Samples("photos", made_photos(2)), limits)
    others = {batch.images.shape[2:] for batch in batches} - {SPEC.crop}
    assert others == {(32, 32), (32, 160), (160, 160), (96, 32), (32, 96)}
    (photo,) = (batch for batch in batches if batch.name == "photos of 32 x 160 batch 1")
    assert np.array_equal(photo.images[0], preprocess(made_photos(1)[0], SPEC.with_input_size((32, 160))))


def test_a_graph_for_batches_of_one_size_is_tried_on_these_alone() -> None:
    limits = InputSpec(shape=(3, 32, 64), min_batch=3, max_batch=3)
    photos = Samples("photos", made_photos(8))
    for task, spec in ((Classifier, SPEC), (Detector, Letterbox(size=(32, 64)))):
        assert {len(batch.images) for batch in verification_batches(task, spec, photos, limits)} == {3}
