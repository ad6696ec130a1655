"""Updates of two processes whose photos are not all readable; run by torchrun, prints the weights as a JSON line."""

import json
from pathlib import Path

import torch

from convmae_deploy.data.determinism import MicroBatch
from tests.engine.test_training_loop import build_loop, micro_batch


def main() -> None:
    """One update with a micro-batch of process 1 empty, one with all of them, one with all of both processes."""
    loop = build_loop(Path("unused"), micro_batches=2)
    rank = loop.run.accelerator.process_index
    updates: list[tuple[list[MicroBatch], list[MicroBatch]]] = [
        ([micro_batch(0, 1), micro_batch(2, 3)], [micro_batch(unreadable=2), micro_batch(4)]),
        ([micro_batch(0, 5), micro_batch(2)], [micro_batch(unreadable=2), micro_batch(unreadable=1)]),
        ([micro_batch(unreadable=1)] * 2, [micro_batch(unreadable=1)] * 2),
    ]
    done = [loop.update(processes[rank]) for processes in updates]
    if rank == 0:
        weights = [value.tolist() for value in loop.run.weights().values()]
        print(json.dumps({"weights": weights, "photos": [[update.images, update.unreadable] for update in done]}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
