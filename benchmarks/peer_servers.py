"""Servers that do the work of one classification request with other software around it; `benchmarks.peers` starts them.

    CONVMAE_BUNDLE=... CONVMAE_THREADS=2 python -m benchmarks.peer_servers starlette|litserve

Each answers `POST /v1/classify` with the bytes of a photo as its body. The work is the server's own, from the body to
the answer's bytes; nothing else of ours is there: no limits, no queue, no key, no metrics.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks.peer_work import PATH, open_work
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import run_program


def serve_starlette(threads: int) -> None:
    """Starlette under uvicorn with uvloop and httptools, the work in a pool of threads."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    work, pool = open_work(), ThreadPoolExecutor(threads)

    async def classify(request: Request) -> Response:
        body = await request.body()
        answer = await asyncio.get_running_loop().run_in_executor(pool, work, body)
        return Response(answer, media_type="application/json")

    application = Starlette(routes=[Route(PATH, classify, methods=["POST"])])
    uvicorn.run(application, host="127.0.0.1", port=0, loop="uvloop", http="httptools", access_log=False)


def serve_litserve(threads: int) -> None:
    """LitServe with as many workers, which are processes with a model each, as the others have threads."""
    try:
        from benchmarks.peer_litserve import run
    except ModuleNotFoundError:
        raise ConvMAEError("LitServe is not installed: pip install '.[peers]'") from None
    run(threads)


SERVERS: Final[dict[str, Callable[[int], None]]] = {"starlette": serve_starlette, "litserve": serve_litserve}


def main() -> int:
    """Serves until a signal."""
    if len(sys.argv) != 2 or sys.argv[1] not in SERVERS:
        raise ConvMAEError(f"expected one of {', '.join(SERVERS)}, got {' '.join(sys.argv[1:]) or 'nothing'}; name one")
    SERVERS[sys.argv[1]](int(os.environ["CONVMAE_THREADS"]))
    return 0


if __name__ == "__main__":
    run_program(main)
