"""The search of one target: stretches of libFuzzer until the time is over, and what they found."""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from convmae_deploy.errors import ConvMAEError
from tests.fuzz.finds import Find, read_finds
from tests.fuzz.target import Target

_MAX_SECONDS_OF_AN_INPUT = 60  # by the clock; what takes so long on a busy machine is tried again by CPU time
_PROGRESS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/")
_STATISTIC = re.compile(r"^stat::(\w+): +(\d+)$", re.MULTILINE)


@dataclass(kw_only=True)
class Result:
    """What a search did and found."""

    target: str
    seconds: float = 0.0
    executions: int = 0
    coverage: int = 0  # places of the watched code that were reached
    features: int = 0  # the same, with how often
    corpus: int = 0  # inputs kept, each of which reaches something that no other does
    peak_mib: int = 0  # of memory
    finds: tuple[Find, ...] = ()

    def add(self, log: str) -> None:
        """Takes in the numbers that one stretch printed."""
        numbers = {name: int(value) for name, value in _STATISTIC.findall(log)}
        self.executions += numbers.get("number_of_executed_units", 0)
        self.peak_mib = max(self.peak_mib, numbers.get("peak_rss_mb", 0))
        if progress := _PROGRESS.findall(log):
            self.coverage, self.features, self.corpus = map(int, progress[-1])


def search(name: str, target: Target, seconds: float, out: Path, seed: int) -> Result:
    """Looks for inputs that break a promise of a reader; goes on from the corpus and the finds that are there.

    Args:
        name: of the target.
        target: whose reader.
        seconds: how long, without shortening the finds afterwards.
        out: folder for corpus, finds and logs, which is made when missing.
        seed: of libFuzzer's random numbers; a search with the same seed, code and start does the same.

    Raises:
        ConvMAEError: a process of the search does not run.
    """
    folders = {part: out / name / part for part in ("corpus", "seeds", "finds", "artifacts")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    words = out / name / "words.dict"
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in target.tokens), encoding="ascii")
    settings = [f"-dict={words}", f"-max_len={target.max_bytes}", f"-timeout={_MAX_SECONDS_OF_AN_INPUT}"]
    settings += [f"-artifact_prefix={folders['artifacts']}/", "-print_final_stats=1", "-close_fd_mask=2"]
    result, start, stretch = Result(target=name), time.monotonic(), 0
    confirmed = [name, str(folders["finds"]), str(folders["artifacts"])]
    with tempfile.TemporaryDirectory(prefix="convmae-fuzz-", dir=_memory()) as scratch:
        environment = os.environ | {"TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
        if _run("seeds", [name, str(folders["seeds"])], environment, out / name / "seeds.log"):
            raise ConvMAEError(
                f"the files that the search of {name} begins with cannot be made; see seeds.log in {out}"
            )
        if any(folders["finds"].iterdir()):  # one that is mended would hide others of its kind
            _run("confirm", confirmed, environment, out / name / "confirm.log")
        while (left := int(seconds - (time.monotonic() - start))) > 0:
            limits = [f"-max_total_time={left}", f"-seed={seed + stretch}"]
            command = [name, str(folders["finds"]), *settings, *limits, str(folders["corpus"]), str(folders["seeds"])]
            log = out / name / f"stretch{stretch}.log"
            status = _run("worker", command, environment, log)
            result.add(log.read_text(encoding="utf-8", errors="replace"))
            if status == 0:
                break
            if not any(folders["artifacts"].iterdir()):
                raise ConvMAEError(f"the search of {name} ended with status {status}; {log} says why")
            _run("confirm", confirmed, environment, out / name / "confirm.log")
            stretch += 1
        result.seconds = time.monotonic() - start
        _run("confirm", confirmed, environment, out / name / "confirm.log")
    result.finds = tuple(read_finds(folders["finds"]))
    return result


def _run(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> int:
    """Runs a module of this package with its output in a log of its own; returns its status."""
    command = [sys.executable, "-m", f"tests.fuzz.{module}", *arguments]
    with log.open("w", encoding="utf-8") as output:
        return subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode


def _memory() -> str | None:
    """A folder in memory where the system has one: some disks take milliseconds to empty a file."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _escaped(token: bytes) -> str:
    """As libFuzzer's dictionaries write it."""
    return "".join(f"\\x{byte:02X}" for byte in token)
