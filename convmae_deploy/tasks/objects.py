"""An object that was found in a photo. Boxes XYXY in pixels."""

from dataclasses import dataclass

from convmae_deploy.tasks.masks import ObjectMask

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object in a photo."""

    label: str
    index: int  # its place in the model's classes
    score: float  # in [0, 1]
    box: Box  # XYXY in pixels of the upright photo, within it
    mask: ObjectMask
