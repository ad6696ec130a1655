"""Photos with label maps as a torch dataset, augmented for training."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from convmae_deploy.data.photo_datasets import seed_sample
from convmae_deploy.data.segmentation_augmentation import SegmentationAugmentation
from convmae_deploy.data.segmentation_folder import LabelError, SegmentationFolder
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.errors import ConvMAEError

SegmentationSample = tuple[Tensor, Tensor]  # image (3, h, w), labels (h, w) int64


class AugmentedSegmentation(Dataset[SegmentationSample | Unreadable]):
    """Photos and their labels through a random transform, each a pure function of (seed, epoch, index).

    Keys and unreadable photos as in `photo_datasets.AugmentedPhotos`. A label map that is wrong is an error
    (`LabelError`): it would teach something wrong.
    """

    def __init__(self, folder: SegmentationFolder, augmentation: SegmentationAugmentation, seed: int) -> None:
        self.folder = folder
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, key: tuple[int, int]) -> SegmentationSample | Unreadable:
        epoch, index = key
        pair = read_pair(self.folder, index)
        if isinstance(pair, Unreadable):
            return pair
        seed_sample(self.seed, epoch, index)
        return self.augmentation(*pair)


def read_pair(folder: SegmentationFolder, index: int) -> tuple[Image.Image, NDArray[np.uint8]] | Unreadable:
    """What `SegmentationFolder.read` gives, or a photo that cannot be decoded.

    Raises:
        LabelError: the label map does not fit; that is the data set's fault and not one photo's.
    """
    try:
        return folder.read(index)
    except LabelError:
        raise
    except ConvMAEError as error:
        return Unreadable.because(folder.photos[index], error)
