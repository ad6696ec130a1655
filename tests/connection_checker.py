"""Runs programs under strace, which sees what native code calls too, and refuses every connection that they try."""

import ipaddress
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.serving.running_server import ROOT, RunningServer
from tests.waiting import PATIENCE_SECONDS

# All that reaches a program from the environment of the tests. Among what does not are the variables that keep the
# runtimes from reporting, which importing our packages has set here, and those of machines that test for others, where
# the runtimes do not report anyway.
_KEPT = {"PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"}
_STRACE = (
    "strace",
    "--follow-forks",
    "--seccomp-bpf",  # stops at these calls alone
    "--trace=execve,connect,sendto,sendmsg,sendmmsg",
    "--inject=connect:error=ENETUNREACH",  # no packet leaves
)
_ADDRESS = re.compile(r'htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
_NAME_PORT = 53
FONT_CACHE = ".cache/matplotlib/"  # in the home folder
_NAME_SERVICE = 'sun_path="/run/systemd/resolve'


@dataclass(frozen=True)
class Watched:
    """What a program did."""

    status: int
    output: str
    attempts: tuple[str, ...]  # the calls that would have left this machine or looked up a name, as strace writes them
    at_home: tuple[str, ...]  # files in its home folder, which was empty


class Watch:
    """An empty home folder for programs, and a record of their calls.

    Args:
        folder: where both go.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self._record = folder / "calls"

    def command(self, settings: Mapping[str, str] | None = None) -> list[str]:
        """What starts a program under the watch.

        Args:
            settings: environment variables of the program.
        """
        left_out = itertools.chain.from_iterable(("-u", name) for name in os.environ if name not in _KEPT)
        given = {"HOME": str(self.home), "PYTHONDONTWRITEBYTECODE": "1", **(settings or {})}
        variables = (f"{name}={value}" for name, value in given.items())
        return ["env", *left_out, *variables, *_STRACE, f"--output={self._record}"]

    def run(self, *arguments: str, settings: Mapping[str, str] | None = None) -> Watched:
        """Runs Python to its end in the root of the repository."""
        command = [*self.command(settings), sys.executable, *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return self.seen(done.returncode, done.stdout)

    def stop(self, server: RunningServer) -> Watched:
        """Ends a server that was started by `command`; strace ends after it, with its status."""
        server_process = int(self._record.read_text().split(maxsplit=1)[0])
        os.kill(server_process, signal.SIGTERM)
        return self.seen(server.process.wait(timeout=PATIENCE_SECONDS), server.log.read_text())

    def seen(self, status: int, output: str) -> Watched:
        """What a program did that has ended, which was started by `command`."""
        attempts = [line for line in self._record.read_text(errors="replace").splitlines() if _leaves(line)]
        files = sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if not path.is_dir())
        return Watched(status, output, tuple(attempts), tuple(files))


def assert_quiet(watched: Watched, allowed_at_home: str | None = None) -> None:
    """Nothing was tried, and nothing left at home but what starts with `allowed_at_home`."""
    assert watched.status == 0, watched.output
    assert not watched.attempts
    assert not [file for file in watched.at_home if allowed_at_home is None or not file.startswith(allowed_at_home)]


def missing_checker() -> str | None:
    """Why nothing can be checked here, in words; None: it can."""
    try:
        works = subprocess.run([*_STRACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return "strace is not installed: apt-get install strace"
    return None if works else "strace may not trace here"


def _leaves(call: str) -> bool:
    """Whether a call goes to another machine, or asks for the address of one."""
    addresses = _ADDRESS.findall(call)
    outside = any(int(port) == _NAME_PORT or not ipaddress.ip_address(host).is_loopback for port, host in addresses)
    return outside or _NAME_SERVICE in call
