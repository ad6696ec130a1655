"""One update of a model sharded by FSDP over CPU processes, saved and resumed; run by torchrun, prints a JSON line."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import clip_grad_norm_

from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.engine.training_config import RunConfig
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.masking import keep_lowest
from convmae_deploy.models.pretraining import ConvMAEPretraining, PretrainingConfig, build_pretraining

MODEL = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64))
PRETRAINING = PretrainingConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)


def update(model: ConvMAEPretraining, optimizer: torch.optim.Optimizer, images: Tensor, kept: Tensor) -> float:
    """One update; returns the norm of the whole gradient."""
    model(images, kept).backward()
    norm: Any = clip_grad_norm_(model.parameters(), float("inf"))
    optimizer.step()
    optimizer.zero_grad()
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def main(out: Path) -> None:
    """Compares with the same update on a whole model, and an update after resuming with the one before."""
    dist.init_process_group("gloo")
    out.mkdir(exist_ok=True)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = build_pretraining(MODEL, PRETRAINING)
    whole = deepcopy(model)
    mesh = init_device_mesh("cpu", (world,))
    for block in (*model.encoder.blocks3, *model.decoder_blocks, model):
        fully_shard(block, mesh=mesh)
    config = OptimisationConfig(epochs=2, warmup_epochs=0, batch_size=4, base_lr=0.1)
    optimizer = build_adamw(model, config)
    images, kept = torch.randn(4, 3, 64, 64), keep_lowest(torch.rand(4, 16), 0.75)
    own = images[rank::world], kept[rank::world]
    whole_norm = update(whole, build_adamw(whole, config), images, kept)
    norm = update(model, optimizer, *own)

    accelerator: Any = SimpleNamespace(
        is_main_process=rank == 0, scaler=None, device=torch.device("cpu"), gather=lambda found: found
    )
    record = CheckpointRecord(kind="pretraining", variant="custom", model=MODEL, pretraining=PRETRAINING)
    run = TrainingRun(
        config=RunConfig(out=out),
        accelerator=accelerator,
        folder=RunFolder(out),
        record=record,
        model=model,
        optimizer=optimizer,
    )
    run.save()
    dist.barrier()
    second = update(model, optimizer, *own)
    run.resume()
    again = update(model, optimizer, *own)
    if rank == 0:
        saved, expected = load_file(out / "last" / "model.safetensors"), whole.state_dict()
        assert saved.keys() == expected.keys()
        difference = max((saved[name] - value).abs().max().item() for name, value in expected.items())
        print(json.dumps({"norms": [whole_norm, norm], "resumed": [second, again], "weights": difference}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
