"""Targets: annotations, shards and checkpoints, which training reads."""

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.scratch import scratch_folder
from tests.fuzz.target import Check, require, require_sentence

ANNOTATIONS = "annotations/instances_train.json"
_MAX_PIXELS_OF_A_MASK = 1_000_000  # larger ones cost what an honest file of that size costs
COCO_TOKENS = tuple(
    f'"{word}"'.encode()
    for word in (
        *("images", "annotations", "categories", "id", "image_id", "category_id", "bbox", "segmentation", "iscrowd"),
        *("area", "file_name", "width", "height", "license", "size", "counts", "name", "supercategory"),
    )
)
TAR_TOKENS = (
    *(b"ustar\x0000", b"ustar  \0", b"././@LongLink", b"./PaxHeaders/", b"GNU.sparse.map=", b"GNU.sparse.size="),
    *(b"11 path=a\n", b"a.jpg\0", b"00000000000\0", b"77777777777\0", b"\x80\xff\xff\xff\xff\xff\xff\xff"),
    *(b"x", b"g", b"S"),
)


def coco_seeds() -> dict[str, bytes]:
    """Annotations with polygons, with run lengths as numbers and as text, and of crowds."""
    from pycocotools import mask as run_lengths

    text = run_lengths.frPyObjects({"size": [8, 10], "counts": [10, 20, 50]}, 8, 10)["counts"].decode()
    kinds: dict[str, Any] = {
        "polygons.json": [[1, 1, 5, 1, 5, 5, 1, 5], [6.5, 1.5, 8, 2, 7, 6]],
        "numbers.json": {"size": [8, 10], "counts": [10, 20, 50]},
        "text.json": {"size": [8, 10], "counts": text},
    }
    seeds = {}
    for name, segmentation in kinds.items():
        entry = {"image_id": 10, "category_id": 3, "bbox": [1, 1, 6, 5], "area": 20, "segmentation": segmentation}
        crowd = {"id": 2, "iscrowd": 1, "segmentation": kinds["numbers.json"]}
        content = {
            "images": [{"id": 10, "file_name": "10.png", "width": 10, "height": 8, "license": 1}],
            "categories": [{"id": 3, "name": "thing"}],
            "annotations": [entry | {"id": 1, "iscrowd": 0}, entry | crowd],
        }
        seeds[name] = json.dumps(content, separators=(",", ":")).encode()
    return seeds


def coco_check() -> Check:
    """Reading annotations, and every mask in them as training and evaluation do."""
    from convmae_deploy.data.coco import read_coco_split
    from convmae_deploy.errors import ConvMAEError

    root = scratch_folder()
    (root / "images" / "train").mkdir(parents=True)
    (root / ANNOTATIONS).parent.mkdir()

    def check(data: bytes) -> None:
        (root / ANNOTATIONS).write_bytes(data)
        try:
            split = read_coco_split(root, "train")
            truth = split.ground_truth()
        except ConvMAEError as error:
            require_sentence(error, quotes_input=True)
            return
        require(len(truth["images"]) == len(split.photos) == len(split.objects), "every photo must have its objects")
        for index, photo in enumerate(split.photos):
            inside = photo.path.resolve().is_relative_to(root.resolve())
            require(inside, f"a photo must be in the folder; {photo.path} is not")
            for item in split.objects[index]:
                left, top, right, bottom = item.box
                require(0 <= left < right <= photo.width, f"a box must be inside its photo; it is {item.box}")
                require(0 <= top < bottom <= photo.height, f"a box must be inside its photo; it is {item.box}")
                require(0 <= item.label < len(split.classes), f"label {item.label} must be that of a class")
                if photo.width * photo.height <= _MAX_PIXELS_OF_A_MASK:
                    mask, again = (item.mask(photo.height, photo.width) for _ in range(2))
                    require(mask.shape == (photo.height, photo.width), f"a mask of {mask.shape} must fit its photo")
                    require(
                        bool((mask == again).all()) and mask.max() <= 1, "a mask must be 0 and 1, and always the same"
                    )

    return check


def shard_seeds() -> dict[str, bytes]:
    """Shards of every kind of header."""
    from tests.data.tar_shards import write_shard

    seeds = {}
    with tempfile.TemporaryDirectory() as folder:
        members = {"a.jpg": b"one", "a.json": b"{}", "b/c.png": b"two", "b/d.seg.png": b"no photo"}
        seeds["plain.tar"] = write_shard(Path(folder) / "plain.tar", members).read_bytes()[:5120]
    for name, form in (
        ("gnu.tar", tarfile.GNU_FORMAT),
        ("pax.tar", tarfile.PAX_FORMAT),
        ("old.tar", tarfile.USTAR_FORMAT),
    ):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            header = tarfile.TarInfo(("x" * 60 + "/") * 2 + "a.webp")
            header.size, header.pax_headers = 5, {"comment": "é"}
            archive.addfile(header, io.BytesIO(b"three"))
        seeds[name] = stream.getvalue()[:5120]
    return seeds


def shard_check() -> Check:
    """Reading a shard's photos and counting them."""
    from convmae_deploy.data.shards import read_shard

    path = scratch_folder() / "shard.tar"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        photos = list(read_shard(path))
        headers = list(read_shard(path, headers_only=True))
        require(all(isinstance(item, bytes | str) for item in photos), "a shard must give photos and sentences")
        require(all(item == b"" or isinstance(item, str) for item in headers), "headers must give no content")

    return check


def checkpoint_seeds() -> dict[str, bytes]:
    """The two files of a checkpoint, and the config of one of another kind; the first byte says which an input is."""
    from convmae_deploy.bundle.preprocessing import Letterbox
    from convmae_deploy.checkpoints.native import CheckpointRecord
    from convmae_deploy.models.convmae import nano
    from convmae_deploy.models.detector import DetectorConfig

    detector = CheckpointRecord(
        kind="detection",
        variant="custom",
        model=nano(),
        detector=DetectorConfig(),
        classes=("a",),
        category_ids=(7,),
        preprocessing=Letterbox(size=(64, 64)),
        provenance={"data": "photos"},
    )
    with tempfile.TemporaryDirectory() as folder:
        return _tiny_checkpoint(Path(folder)) | {"detector.json": detector.model_dump_json().encode()}


def _tiny_checkpoint(folder: Path) -> dict[str, bytes]:
    import torch

    from convmae_deploy.bundle.preprocessing import standard_preprocessing
    from convmae_deploy.checkpoints.native import CheckpointRecord, write_checkpoint_files
    from convmae_deploy.models.convmae import nano

    preprocessing = standard_preprocessing((224, 224))
    record = CheckpointRecord(
        kind="classification", variant="nano", model=nano(), classes=("a", "b"), preprocessing=preprocessing
    )
    write_checkpoint_files(folder, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2, dtype=torch.float16)}, record)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def checkpoint_check() -> Check:
    """Reading a checkpoint, one of whose files is the input."""
    from convmae_deploy.checkpoints.native import CONFIG_NAME, WEIGHTS_NAME, CheckpointRecord, read_checkpoint
    from convmae_deploy.errors import ConvMAEError

    folder = scratch_folder()
    intact = _tiny_checkpoint(folder)

    def check(data: bytes) -> None:
        name = CONFIG_NAME if data[:1] == b"{" else WEIGHTS_NAME
        (folder / name).write_bytes(data)
        try:
            record, state = read_checkpoint(folder)
            again = CheckpointRecord.model_validate_json(record.model_dump_json())
            require(again == record, "a record that was accepted must be accepted again as it was")
            held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
            require(held <= len(intact[WEIGHTS_NAME]) + len(data), f"tensors of {held} bytes must be in the file")
        except ConvMAEError as error:
            require_sentence(error, quotes_input=True)
        finally:
            (folder / name).write_bytes(intact[name])

    return check
