"""The conformance kit of a bundle: photos that are easily read in a wrong way, and what a right program makes of them.

`conformance.zip` is a file of the bundle, with a hash in its manifest, and says all that a program elsewhere needs:

    README.md            what to do with a photo, in words and numbers
    kit.json             what is awkward about each photo, and the manifest's input, preprocessing and outputs
    photos/cmyk.jpg      ...
    tensors.safetensors  inputs/cmyk: what the graph is to be given; outputs/cmyk/logits: what it is to give

Of an output with more than 4096 numbers there are 4096, evenly spaced in its flattened form: the i-th is entry
floor(i size / 4096). Of a model that gives lists of what it found there are the scores alone, since near ties may
change places. A kit is data of a stranger: it is read within bounds, and never unpacked to disk.
"""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import KIT_NAME, Manifest
from convmae_deploy.files import read_regular
from convmae_deploy.tasks import task_of

MOST_NUMBERS = 4096  # of an output
MAX_KIT_BYTES = 2**28
MAX_PHOTO_BYTES = 2**24
MAX_PHOTOS = 32
MAX_JSON_BYTES = 2**20
README_NAME, JSON_NAME, TENSORS_NAME, PHOTOS_FOLDER = "README.md", "kit.json", "tensors.safetensors", "photos"


@dataclass(frozen=True, kw_only=True)
class KitPhoto:
    """A photo as a file."""

    file: str  # its name, without a folder
    about: str  # what is awkward about it, and what is right
    content: bytes

    @property
    def name(self) -> str:
        """What its tensors are called by."""
        return self.file.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class KitItem:
    """A photo and what is right for it."""

    photo: KitPhoto
    input: FloatArray  # (3, H, W)
    outputs: Mapping[str, NDArray[Any]]  # those of `sampled`, by name


class _Photo(BaseModel):
    model_config = ConfigDict(extra="ignore")

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}\.[a-z]{2,5}$")
    about: str = Field(max_length=1000)


class _Content(BaseModel):
    """What is read of kit.json."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = Field(ge=1, le=1)
    photos: list[_Photo] = Field(min_length=1, max_length=MAX_PHOTOS)


def input_key(photo: str) -> str:
    """What an array is called that the graph is to be given."""
    return f"inputs/{photo}"


def output_key(photo: str, output: str) -> str:
    """What an array is called that the graph gives."""
    return f"outputs/{photo}/{output}"


def kit_outputs(manifest: Manifest) -> tuple[str, ...]:
    """The outputs that a kit holds."""
    task = task_of(manifest)
    return (task.KEY_OUTPUT,) if task.GIVES_LISTS else tuple(manifest.outputs)


def sampled(output: NDArray[Any]) -> NDArray[Any]:
    """Of an output of one photo, without the batch axis, the numbers that a kit holds, flattened."""
    flat = output.reshape(-1)
    count = min(MOST_NUMBERS, flat.size)
    return flat[np.arange(count) * flat.size // count]


def pack_kit(manifest: Manifest, items: list[KitItem]) -> bytes:
    """The content of the file."""
    content = {
        "schema_version": 1,
        "bundle": manifest.name,
        "photos": [{"file": item.photo.file, "about": item.photo.about} for item in items],
        **manifest.model_dump(mode="json", include={"task", "input", "preprocessing", "outputs", "classes"}),
    }
    tensors = {input_key(item.photo.name): np.ascontiguousarray(item.input) for item in items}
    for item in items:
        for output, values in item.outputs.items():
            tensors[output_key(item.photo.name, output)] = np.ascontiguousarray(values)
    packed = io.BytesIO()
    with ZipFile(packed, "w") as archive:
        members = {
            README_NAME: _readme(manifest, items).encode(),
            JSON_NAME: (json.dumps(content, indent=1) + "\n").encode(),
            **{f"{PHOTOS_FOLDER}/{item.photo.file}": item.photo.content for item in items},
            TENSORS_NAME: save_tensors(tensors),
        }
        for name, data in members.items():
            with archive.open(_member(name), "w") as file:
                file.write(data)
    return packed.getvalue()


def _member(name: str) -> ZipInfo:
    """Without the time of day, so that equal kits are equal files."""
    info = ZipInfo(name)
    info.compress_type = ZIP_DEFLATED
    return info


def _readme(manifest: Manifest, items: list[KitItem]) -> str:
    steps = manifest.preprocessing.steps()
    return "\n".join(
        [
            f"# Conformance kit of {manifest.name}",
            "",
            "Photos that are easily read in a wrong way, and what is right for each. What a program must do:",
            "",
            *(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
            "",
            *(f"- `{PHOTOS_FOLDER}/{item.photo.file}`: {item.photo.about}" for item in items),
            "",
            f"`{TENSORS_NAME}` holds `{input_key('PHOTO')}`, {manifest.input.dtype} (3, H, W), what the graph is to be "
            f"given as `{manifest.input.name}`, and `{output_key('PHOTO', 'OUTPUT')}`, what it is to give. Of an "
            f"output with more than {MOST_NUMBERS} numbers there are {MOST_NUMBERS}: the i-th is entry "
            f"floor(i size / {MOST_NUMBERS}) of the flattened output.",
            "",
            "`convmae conform BUNDLE --npz mine.npz`, with arrays of these names, says what a program does otherwise.",
            "",
            "The photos were drawn for this kit; nobody has rights in them (CC0 1.0).",
            "",
        ]
    )


def read_kit(bundle: Bundle) -> list[KitItem]:
    """The kit of a bundle, whose hash was checked when the bundle was read.

    Raises:
        BundleError: it has none, or one that is not as stated.
    """
    if bundle.manifest.conformance is None:
        raise BundleError(
            f"bundle {bundle.path} holds no {KIT_NAME}: it is for videos, or of an earlier release; export it again"
        )
    path = bundle.path / KIT_NAME
    try:
        with ZipFile(io.BytesIO(read_regular(path, MAX_KIT_BYTES))) as archive:
            content = _Content.model_validate_json(_read(archive, JSON_NAME, MAX_JSON_BYTES))
            tensors = load_tensors(_read(archive, TENSORS_NAME, MAX_KIT_BYTES))
            return [
                _item(bundle.manifest, photo, _read(archive, f"{PHOTOS_FOLDER}/{photo.file}", MAX_PHOTO_BYTES), tensors)
                for photo in content.photos
            ]
    except (OSError, BadZipFile, ValueError, NotImplementedError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ValidationError):
            error = ValueError(f"{JSON_NAME} is not as it must be")
        raise BundleError(f"{path} is no conformance kit ({error}); export the bundle again") from None


def _read(archive: ZipFile, name: str, limit: int) -> bytes:
    try:
        with archive.open(name) as file:
            data = file.read(limit + 1)
    except KeyError:
        raise ValueError(f"it lacks {name}") from None
    if len(data) > limit:
        raise ValueError(f"{name} has more than {limit} bytes")
    return data


def _item(manifest: Manifest, photo: _Photo, content: bytes, tensors: Mapping[str, NDArray[Any]]) -> KitItem:
    found = KitPhoto(file=photo.file, about=photo.about, content=content)

    def tensor(key: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        values = tensors.get(key)
        if values is None or values.shape != shape or values.dtype != dtype or not np.isfinite(values).all():
            raise ValueError(f"{key} must be {dtype} {shape}, finite")
        return values

    outputs = {}
    for name in kit_outputs(manifest):
        spec = manifest.outputs[name]
        count = min(MOST_NUMBERS, math.prod(spec.shape))
        outputs[name] = tensor(output_key(found.name, name), spec.dtype, (count,))
    return KitItem(
        photo=found, input=tensor(input_key(found.name), manifest.input.dtype, manifest.input.shape), outputs=outputs
    )
