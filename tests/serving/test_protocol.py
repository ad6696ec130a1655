"""Connections that never become a request."""

import asyncio
import json
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serving import protocol


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def talk(*pieces: bytes) -> bytes:
    """Sends pieces to a server with a tenth of a second between them; returns all that comes back."""
    config = uvicorn.Config(hello, http=protocol.LimitedProtocol, log_config=None, lifespan="off", ws="none")
    config.load()
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    made: Any = lambda: protocol.LimitedProtocol(config, server.server_state, {})  # noqa: E731
    listening = await loop.create_server(made, "127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.1)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return answer
    finally:
        listening.close()


@pytest.mark.parametrize("pieces", [(), (b"GET / HTT",), (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-Slow: 1\r\n")])
def test_headers_that_do_not_come_in_time_are_408(monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    head, _, body = asyncio.run(talk(*pieces)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "header_timeout"


def test_the_second_request_of_a_connection_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = asyncio.run(talk(request, request, request, request, b"GET / HT"))
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert answer.count(b"HTTP/1.1 408 ") == 1
