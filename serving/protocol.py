"""Limits that apply before there is a request: the size of its headers and the time they take.

uvicorn has neither with httptools: a client could send headers for ever, or connect and say nothing.
"""

import asyncio
import json
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.guard import MAX_HEADER_BYTES, new_request_id

HEADER_SECONDS: Final = 10.0


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with those two limits, and its own errors in this server's shape."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_bytes = 0
        self._in_headers = True
        self._header_timer: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_headers and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(431, "headers_too_large", f"expected at most {MAX_HEADER_BYTES} bytes of headers")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._in_headers = True
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_http", "expected an HTTP/1.1 request, got something else")

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self._refuse(408, "header_timeout", f"expected the request's headers within {HEADER_SECONDS:g} s")

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._stop_timer()
        content: dict[str, Any] = {"code": code, "message": message, "field": None, "request_id": new_request_id()}
        body = json.dumps({"error": content}).encode()
        head = b"content-type: application/json\r\nx-content-type-options: nosniff\r\nconnection: close\r\n"
        self.transport.write(STATUS_LINE[status] + head + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
