"""Puts the conformance kit into a bundle whose graphs were proven."""

from pathlib import Path

from convmae_deploy.bundle.manifest import KIT_NAME, MANIFEST_NAME, Manifest, StoredFile
from convmae_deploy.conformance.kit import KitItem, kit_outputs, pack_kit, sampled
from convmae_deploy.files import sha256_of
from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks import task_of
from export.kit_photos import kit_photos
from export.runtimes.runners import Runner


def add_kit(directory: Path, reference: Runner) -> None:
    """Writes `KIT_NAME` and its hash into the manifest; models of videos get none.

    Args:
        directory: a bundle with its manifest.
        reference: gives the numbers that hold.
    """
    path = directory / MANIFEST_NAME
    manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    task = task_of(manifest)
    if task.MEDIUM == "video":
        return
    items = []
    for photo in kit_photos():
        image = task.pixels(decode_image(photo.content).image, manifest.preprocessing)
        outputs = reference(image[None])
        items.append(
            KitItem(
                photo=photo, input=image, outputs={name: sampled(outputs[name][0]) for name in kit_outputs(manifest)}
            )
        )
    kit = directory / KIT_NAME
    kit.write_bytes(pack_kit(manifest, items))
    stored = StoredFile(sha256=sha256_of(kit), bytes=kit.stat().st_size)
    text = manifest.model_copy(update={"conformance": stored}).model_dump_json(indent=2)
    path.write_text(text + "\n", encoding="utf-8")
