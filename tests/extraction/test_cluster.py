import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction import cluster
from convmae_deploy.extraction.cluster import RayOptions
from tests.bundle_factory import make_feature_bundle
from tests.extraction.photos import write_photos, write_tar
from tests.test_cli import convmae

OPTIONS = ("--shard-rows", "2", "--device", "cpu", "--threads", "1")


class FakeRay:
    """A cluster of two processors."""

    def __init__(self, problem: Exception | None = None) -> None:
        self._problem = problem
        self.started: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.started = options
        if self._problem is not None:
            raise self._problem

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RayOptions(ray="auto", ray_actors=0), "at least one actor and no negative number of processors; got 0 actors"),
        (RayOptions(ray="auto", ray_cpus=-1), "with -1 CPUs"),
        (RayOptions(ray="auto", ray_actors=3), "3 actors with 1 CPUs need 3 in all, the cluster has 2; give"),
        (RayOptions(ray="auto", ray_gpus=0.5), "with 0.5 GPUs need 0.5 in all, the cluster has 0; .*--ray-gpus"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: RayOptions, words: str
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: FakeRay())
    with pytest.raises(ConvMAEError, match=words):
        cluster._start(options)


def test_ray_starts_where_it_is_told_and_reports_nothing_to_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    ray = FakeRay()
    monkeypatch.setattr(importlib, "import_module", lambda name: ray)
    assert cluster._start(RayOptions(ray="auto", ray_actors=4, ray_cpus=0.5)) is ray
    assert ray.started["address"] == "auto" and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_without_a_cluster_or_without_ray_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = FakeRay(ConnectionError("Could not find any running Ray instance."))
    monkeypatch.setattr(importlib, "import_module", lambda name: gone)
    with pytest.raises(ConvMAEError, match=r"no Ray cluster answers at 'auto' \(Could not find .*give --ray local"):
        cluster._start(RayOptions(ray="auto"))

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConvMAEError, match=r"--ray needs ray; run pip install '\.\[pipelines\]'"):
        cluster._start(RayOptions(ray="auto"))


def test_the_sentence_of_an_actor_is_that_of_the_program() -> None:
    inner = ConvMAEError("the bundle is gone")
    task, outer = RuntimeError("ray::MapWorker failed\nTraceback"), RuntimeError("in an actor")
    task.cause = inner  # type: ignore[attr-defined]  # as Ray's exceptions have it
    outer.__cause__ = task
    assert cluster._own(outer) is inner
    assert "the work on Ray ended (the node died); run the same" in str(
        cluster._own(RuntimeError("x\nthe node died\n"))
    )


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, with their command lines."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    below: set[int] = {pid}
    found: dict[int, str] = {}
    while new := {child for child, parent in parents.items() if parent in below and child not in below}:
        below |= new
        found |= {child: commands[child] for child in new}
    return found


def run_on_ray(command: list[str], at_shards: Mapping[int, Callable[[subprocess.Popen[str]], None]]) -> int:
    """Runs a command, and does something when so many shards are done; its exit status."""
    done = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("features-"):
                done += 1
                if done in at_shards:
                    at_shards[done](process)
    return process.returncode


@pytest.mark.slow
def test_a_job_on_ray_survives_the_death_of_an_actor_and_of_its_driver(tmp_path: Path) -> None:
    bundle = make_feature_bundle(tmp_path / "bundle")
    files = write_photos(tmp_path / "photos", 13, bad=(4,))
    tar = write_tar(tmp_path / "x.tar", {file.name: file.read_bytes() for file in files})
    arguments = ("features", bundle, tmp_path / "photos", tar, *OPTIONS, "--out")
    assert convmae(*arguments, tmp_path / "here") == 0
    expected = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert len(expected) == 1 + 14 + 2

    def kill_an_actor(process: "subprocess.Popen[str]") -> None:
        actors = [pid for pid, command in descendants(process.pid).items() if command.startswith("ray::MapWorker")]
        os.kill(actors[0], 9)  # the other one may still be starting

    base = [sys.executable, "-m", "convmae_deploy.cli", *map(str, arguments)]
    ray = ["--ray", "local", "--ray-actors", "2", "--ray-cpus", "0.5"]
    # one of two actors goes, and all but what the other one can have in hand is done before the driver goes
    kills = {1: kill_an_actor, 11: lambda process: process.kill()}
    assert run_on_ray([*base, str(tmp_path / "out"), *ray], kills) == -9
    assert len(list((tmp_path / "out").glob("features-*"))) >= 11
    assert convmae(*arguments, tmp_path / "out") == 0
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert found == expected
