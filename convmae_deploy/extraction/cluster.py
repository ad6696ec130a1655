"""The same job on a Ray cluster: Ray Data deals the pieces to actors, each of which has a model and makes shards.

A piece is the unit of work: an actor that dies costs its shard another try and no row, as a shard appears whole or not
at all, and a driver that dies costs the shards that were being made. The shards are those of one process.
"""

import importlib
import logging
import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from convmae_deploy.errors import ConvMAEError, ModelError, missing_extra
from convmae_deploy.extraction.job import ShardMaker
from convmae_deploy.extraction.outputs import open_output
from convmae_deploy.extraction.pieces import Piece
from convmae_deploy.extraction.shards import Written
from convmae_deploy.extraction.stores import is_remote, local_path


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where and how to run on Ray."""

    # a cluster's address, "auto" for the one that this machine belongs to, "local" for one of this machine alone that
    # ends with the job (default: without Ray)
    ray: str | None = None
    ray_actors: int = 1  # models that run side by side
    ray_cpus: float = 1.0  # of the cluster, for each of them; a part of one is possible
    ray_gpus: float = 0.0  # the same of GPUs


NO_RAY = RayOptions()


def run_on_ray(
    maker: ShardMaker, pieces: list[tuple[int, Piece]], options: RayOptions
) -> Iterator[tuple[int, Written]]:
    """Makes shards on a cluster, whose machines need this package, the bundle, the sources and the output folder.

    Args:
        maker: what makes them.
        pieces: index of each shard, and what it is made of.
        options: where to run.

    Yields:
        Index of a shard that is done, and what is in it, in any order.

    Raises:
        ConvMAEError: Ray is not installed or not there, or the cluster is too small; or as `OpenShardMaker.run`.
    """
    ray = _start(options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts shards
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    strategy = ray.data.ActorPoolStrategy(size=max(1, min(options.ray_actors, len(pieces))))
    rows = [{"index": index, "piece": pickle.dumps(piece)} for index, piece in pieces]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        batch_size=1,
        compute=strategy,
        num_cpus=options.ray_cpus,
        num_gpus=options.ray_gpus,
        fn_constructor_kwargs={"maker": _anywhere(maker, options), "folder": os.getcwd()},
    )
    try:
        for row in dataset.iter_rows():
            yield int(row["index"]), pickle.loads(row["written"])
        names = open_output(maker.out).names()
    except (ray.exceptions.RayError, ray.exceptions.RayTaskError) as error:
        raise _own(error) from error
    lost = [name for index, _ in pieces if (name := maker.job.shard_name(index)) not in names]
    if lost:
        raise ConvMAEError(
            f"{len(lost)} shards, the first {lost[0]}, were written where this machine does not see them; give a "
            "folder that all machines share, or an object store"
        )


def _start(options: RayOptions) -> Any:
    """Ray, connected.

    Raises:
        ConvMAEError: it is not installed, not there, or has too few processors.
    """
    # Ray reports its use to its maker unless this is set before it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise missing_extra("--ray", str(error.name), "pipelines") from None
    if options.ray_actors < 1 or options.ray_cpus < 0 or options.ray_gpus < 0:
        raise ConvMAEError(
            "expected at least one actor and no negative number of processors; got "
            f"{options.ray_actors} actors with {options.ray_cpus:g} CPUs and {options.ray_gpus:g} GPUs"
        )
    if not ray.is_initialized():
        local: dict[str, Any] = {"include_dashboard": False} if options.ray == "local" else {}
        try:
            ray.init(address=options.ray, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConvMAEError(
                f"no Ray cluster answers at {options.ray!r} ({' '.join(str(error).split())[:200]}); start one with ray "
                "start --head, or give --ray local"
            ) from error
    there = ray.cluster_resources()
    for name, each in (("CPU", options.ray_cpus), ("GPU", options.ray_gpus)):
        if options.ray_actors * each > there.get(name, 0.0) + 1e-9:
            raise ConvMAEError(
                f"{options.ray_actors} actors with {each:g} {name}s need {options.ray_actors * each:g} in all, the "
                f"cluster has {there.get(name, 0.0):g}; give fewer with --ray-actors or --ray-{name.lower()}s"
            )
    return ray


def _anywhere(maker: ShardMaker, options: RayOptions) -> ShardMaker:
    """The same for a process in another folder, with as many cores as it is given."""
    out = maker.out if is_remote(maker.out) else str(local_path(maker.out).absolute())
    cores = max(1, math.ceil(options.ray_cpus))
    return replace(maker, out=out, model=replace(maker.model, bundle=maker.model.bundle.absolute(), cores=cores))


class _Actor:
    """One model on the cluster."""

    def __init__(self, maker: ShardMaker, folder: str) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)  # from which the user's paths begin
        self._shards = maker.open()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        pieces = [
            (int(index), pickle.loads(piece)) for index, piece in zip(batch["index"], batch["piece"], strict=True)
        ]
        done = list(self._shards.run(pieces))
        return {"index": [index for index, _ in done], "written": [pickle.dumps(written) for _, written in done]}


def _own(error: BaseException) -> Exception:
    """The exception of this package that lies under one of Ray's, or a sentence with what Ray says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConvMAEError | ModelError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ConvMAEError(f"the work on Ray ended ({lines[-1].strip()[:300]}); run the same command again, which goes on")
