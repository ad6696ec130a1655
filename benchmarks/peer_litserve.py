"""The work of a classification request as a LitServe API, in a file of its own that LitServe's workers can import."""

import importlib
import signal
import socket
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peer_work import PATH, open_work

litserve: Any = importlib.import_module("litserve")
fastapi: Any = importlib.import_module("fastapi")


async def body_of(request: Request) -> bytes:
    """The bytes of a photo; LitServe itself would read a request as JSON or a form."""
    return await request.body()


class Classify(litserve.LitAPI):  # type: ignore[misc]  # the package is in an extra of its own
    """One worker."""

    def setup(self, device: str) -> None:
        """Opens the model in this process."""
        self.work = open_work()

    def decode_request(self, request: Annotated[bytes, fastapi.Depends(body_of)]) -> bytes:
        """The body as it is."""
        return request

    def predict(self, body: bytes) -> bytes:
        """All of the work."""
        return self.work(body)

    def encode_response(self, answer: bytes) -> Response:
        """The answer as it is."""
        return Response(answer, media_type="application/json")


def run(workers: int) -> None:
    """Serves until a signal, on a port that was free a moment ago, as LitServe does not take 0 for any free one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = litserve.LitServer(Classify(api_path=PATH), accelerator="cpu", workers_per_device=workers, timeout=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends its processes at Ctrl-C alone
    server.run(host="127.0.0.1", port=port, generate_client_file=False, access_log=False)
