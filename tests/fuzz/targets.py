"""All targets of the search, by the names that the program takes."""

from tests.fuzz import bundles, photos, training_files, videos, wire
from tests.fuzz.archives import mutate_tar
from tests.fuzz.json_trees import TOKENS, mutate_json
from tests.fuzz.protobuf_trees import mutate_protobuf
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    "images": Target(
        reader="photos in every format",
        seeds=photos.photo_seeds,
        prepare=photos.photo_check,
        tokens=photos.PHOTO_TOKENS,
        mutate=photos.mutate_photo,
    ),
    "tiff": Target(
        reader="TIFF",
        seeds=photos.tiff_seeds,
        prepare=photos.tiff_check,
        tokens=photos.TIFF_TOKENS,
    ),
    "video": Target(
        reader="videos, from their first bytes to frames",
        seeds=videos.video_seeds,
        prepare=videos.video_check,
        tokens=videos.VIDEO_TOKENS,
        mutate=videos.mutate_video,
        max_bytes=32_768,
    ),
    "manifest": Target(
        reader="a bundle's manifest",
        seeds=bundles.manifest_seeds,
        prepare=bundles.manifest_check,
        tokens=TOKENS + bundles.MANIFEST_TOKENS,
        mutate=mutate_json,
    ),
    "graph": Target(
        reader="a graph in ONNX, looked at and not run",
        seeds=bundles.graph_seeds,
        prepare=bundles.graph_check,
        tokens=bundles.ONNX_TOKENS,
        mutate=mutate_protobuf,
    ),
    "engine": Target(
        reader="the record of an engine",
        seeds=bundles.engine_seeds,
        prepare=bundles.engine_check,
        tokens=TOKENS,
        mutate=mutate_json,
    ),
    "coco": Target(
        reader="annotations in COCO's format",
        seeds=training_files.coco_seeds,
        prepare=training_files.coco_check,
        tokens=TOKENS + training_files.COCO_TOKENS,
        mutate=mutate_json,
    ),
    "shard": Target(
        reader="shards of photos",
        seeds=training_files.shard_seeds,
        prepare=training_files.shard_check,
        tokens=training_files.TAR_TOKENS,
        mutate=mutate_tar,
    ),
    "checkpoint": Target(
        reader="a checkpoint's config and weights",
        seeds=training_files.checkpoint_seeds,
        prepare=training_files.checkpoint_check,
        tokens=TOKENS,
        mutate=mutate_json,
    ),
    "request": Target(
        reader="the body of a request",
        seeds=wire.request_seeds,
        prepare=wire.request_check,
        tokens=TOKENS + wire.WIRE_TOKENS,
    ),
    "exif": Target(
        reader="the orientation in EXIF",
        seeds=wire.exif_seeds,
        prepare=wire.exif_check,
        tokens=(b"Exif\0\0", b"II*\0", b"MM\0*", b"\x12\x01\x03\0", b"\x01\x12\0\x03"),
    ),
}
