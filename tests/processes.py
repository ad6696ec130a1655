"""Programs in processes that find each other as those of torchrun do, without an interpreter start for each.

The first use starts one interpreter that imports what training programs need; all processes are forked from that one.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
RunProcesses = Callable[..., str]


@pytest.fixture(scope="session")
def run_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunProcesses]:
    """Does what `torchrun --nproc-per-node COUNT -m MODULE ARGUMENTS` does; COUNT 1 is without torchrun.

    `run_processes(2, "training.segment", "nano", …)` returns what the processes printed once all have ended well.
    """
    folder = tmp_path_factory.mktemp("processes")
    printed, errors = folder / "printed", folder / "errors"
    with ExitStack() as stack:
        servers: list[subprocess.Popen[str]] = []

        def run(count: int, module: str, *arguments: str) -> str:
            if not servers:
                servers.append(stack.enter_context(_start()))
                stack.callback(servers[0].kill)
            from torch._C._distributed_c10d import TCPStore  # which tests of the server do not need

            store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)  # as torchrun's agent has it
            files = [str(printed), str(errors)]
            job = {"count": count, "command": [module, *arguments], "port": store.port, "files": files}
            requests, answers = servers[0].stdin, servers[0].stdout
            assert requests is not None and answers is not None
            print(json.dumps(job), file=requests, flush=True)
            assert json.loads(answers.readline()) == [0] * count, errors.read_text(errors="replace")
            return printed.read_text(encoding="utf-8")

        yield run


def _start() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.processes"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve() -> None:
    """Reads jobs, a line each, and answers each with the exit statuses of its processes."""
    import training.detect
    import training.finetune
    import training.pretrain  # noqa: F401  # whose imports are those that take their time

    for line in sys.stdin:
        job = json.loads(line)
        files = [os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC) for file in job["files"]]
        processes = [_fork(rank, job["count"], job["port"], job["command"], files) for rank in range(job["count"])]
        for file in files:
            os.close(file)
        statuses: dict[int, int] = {}
        while len(statuses) < len(processes):
            process, status = os.wait()
            statuses[process] = os.waitstatus_to_exitcode(status)
            if status:  # the others would wait for this one
                for other in set(processes) - set(statuses):
                    os.kill(other, signal.SIGKILL)
        print(json.dumps([statuses[process] for process in processes]), flush=True)


def _fork(rank: int, count: int, port: int, command: list[str], files: list[int]) -> int:
    """The id of a process that runs a module as `python -m` does."""
    process = os.fork()
    if process:
        return process
    for file, stream in zip(files, (1, 2), strict=True):
        os.dup2(file, stream)
    status: object = 1
    try:
        if count > 1:
            os.environ |= _surroundings(rank, count, port)
        sys.argv = command
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def _surroundings(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun says to its processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "tests",
    }


if __name__ == "__main__":
    serve()
