"""Pretrains a VideoConvMAE on videos without labels, by reconstructing what a tube mask hides.

    python -m training.video_pretrain nano --data videos/ --out runs/pretrained-video
    torchrun --nproc-per-node 8 --nnodes 4 … -m training.video_pretrain k400 --data k400/train.csv --out runs/k400

`--data` is a folder of videos, flat or by class (its `train/` where it has one), or a list of them. The presets `k400`
and `ssv2` are the paper's protocol (section 2.4: from scratch, tubes of 90 %) with VideoMAE's schedule where the paper
names none; they were not run by us. `nano` is ours for a CPU: training/README.md has its figures.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import Tensor

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.data.data_check import check_unlabelled_videos
from convmae_deploy.data.findings import Findings
from convmae_deploy.data.listing import LISTING, listing
from convmae_deploy.data.video_augmentation import ClipCropConfig, clip_pretraining_transform
from convmae_deploy.data.video_datasets import MaskedVideos
from convmae_deploy.data.video_folder import find_training_videos
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.engine.reconstruction import MaskedTrainingConfig, ReconstructionRecipe, reconstruction_strip
from convmae_deploy.engine.training_config import RunConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import Setup, run_preset
from convmae_deploy.engine.video import VideoTrainingConfig
from convmae_deploy.media.video_file import import_av
from convmae_deploy.models.convmae import PATCH_SIZE
from convmae_deploy.models.masking import keep_tubes
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import (
    VideoPretraining,
    VideoPretrainingConfig,
    build_video_pretraining,
)
from convmae_deploy.program import run_program

PICTURE_CLIPS = 3


@dataclass(frozen=True, kw_only=True)
class VideoPretrainConfig(VideoTrainingConfig, MaskedTrainingConfig):
    """One video pretraining run."""

    data: Path = tyro.MISSING  # folder of videos, or list of them (.csv, .txt)
    stride: int = 4  # from one frame of a clip to the next
    model: VideoPretrainingConfig = field(default_factory=VideoPretrainingConfig)
    augmentation: ClipCropConfig = field(default_factory=ClipCropConfig)
    optimisation: OptimisationConfig = field(
        default_factory=lambda: OptimisationConfig(
            epochs=800,
            warmup_epochs=40,
            batch_size=2048,
            micro_batch_size=32,
            base_lr=1.5e-4,
            min_lr=1e-5 * 2048 / 256,  # VideoMAE scales it as it scales the rate
            betas=(0.9, 0.95),
        )
    )


def k400() -> VideoPretrainConfig:
    """Kinetics-400: 16 frames with stride 4; 200 and 800 epochs are the authors' rows, the latter here."""
    return VideoPretrainConfig(variant="base")


def ssv2() -> VideoPretrainConfig:
    """Something-Something v2: stride 2, as VideoMAE has it; no flip, which would exchange left and right."""
    return replace(k400(), stride=2, augmentation=ClipCropConfig(flip=0.0))


def nano() -> VideoPretrainConfig:
    """A few hundred clips, on a CPU."""
    return VideoPretrainConfig(
        variant="nano",
        image_size=(64, 64),
        stride=1,
        video=VideoConfig(frames=16),
        model=VideoPretrainingConfig(
            decoder_width=96, decoder_depth=2, decoder_heads=3, mask_ratio=0.75, norm_pix_loss=False
        ),
        augmentation=ClipCropConfig(flip=0.0),
        optimisation=replace(
            k400().optimisation,
            epochs=100,
            warmup_epochs=5,
            batch_size=16,
            micro_batch_size=16,
            base_lr=6e-3,
            min_lr=0.0,
            clip_grad=1.0,
        ),
        run=RunConfig(),
    )


PRESETS = {
    "nano": ("Ours: for a CPU.", nano()),
    "tiny": ("Ours: the nano recipe on a larger model.", replace(nano(), variant="tiny")),
    "k400": ("VideoConvMAE-B on Kinetics-400.", k400()),
    "ssv2": ("VideoConvMAE-B on Something-Something v2.", ssv2()),
}


def prepare(config: VideoPretrainConfig) -> TrainingLoop:
    """Everything a run needs, before its first update.

    Raises:
        ConvMAEError: bad data or settings.
    """
    import_av()  # else every video would count as one that cannot be decoded
    findings = Findings()
    videos = find_training_videos(config.data, findings)
    setup = Setup.of(config, may_shard=True)
    setup.check_data(partial(check_unlabelled_videos, config.data, videos, findings))
    record = config.initial_record("video-pretraining", video_pretraining=config.model)
    assert isinstance(record.preprocessing, ClipPreprocessing)
    height, width = record.model.grid_size
    choose = partial(keep_tubes, mask_ratio=config.model.mask_ratio)
    choose(torch.zeros(1, height * width))  # refuses what cannot be
    transform = clip_pretraining_transform(config.augmentation, record.model.image_size, record.preprocessing)
    source = setup.source(MaskedVideos(videos, record.preprocessing, transform, config.run.seed, cells=height * width))
    fresh = build_video_pretraining(record.model, config.video, config.model)
    model = config.started(fresh, record.model, setup.console)
    optimizer = build_adamw(model, config.optimisation)
    facts = {"train_videos": len(videos), LISTING: listing(config.data, ((video, None) for video in videos))}
    setup.choose_depthwise(model, PATCH_SIZE)
    run = setup.begin(record, model, optimizer, source, facts)
    picture = partial(last_clips, preprocessing=record.preprocessing)
    recipe = ReconstructionRecipe(config=config, run=run, console=setup.console, choose=choose, picture=picture)
    return setup.loop(source, recipe, kind="videos", picture_epochs=config.picture_epochs)


def last_clips(
    model: VideoPretraining, clips: Tensor, kept: Tensor, *, preprocessing: ClipPreprocessing
) -> Image.Image:
    """Reconstructions of a few clips."""
    return reconstruction_strip(model, clips[:PICTURE_CLIPS], kept[:PICTURE_CLIPS], preprocessing)


def main() -> int:
    """Command line: a preset, then flags that change it."""
    return run_preset(PRESETS, "python -m training.video_pretrain", prepare)


if __name__ == "__main__":
    run_program(main)
