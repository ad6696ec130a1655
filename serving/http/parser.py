"""httptools' parser of requests, which stays with HTTP/1.1 whatever else a client offers.

Many clients offer HTTP/2 with their first request (`Connection: Upgrade` and `Upgrade: h2c`: Java's, curl --http2),
others a WebSocket. The offer may be ignored, and the request is then like any other; but httptools stops at it and
takes the body for the start of another protocol.
"""

from typing import Any, Final, Protocol

import httptools

OFFER: Final = frozenset({b"upgrade", b"http2-settings"})  # headers, and tokens of the header Connection


class Receiver(Protocol):
    """What is called with the parts of requests; here, what it keeps of the head at hand."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class RequestParser(httptools.HttpRequestParser):
    """Calls its receiver as httptools does.

    Where a request offers another protocol, `should_upgrade()` is true in `on_headers_complete` and
    `on_message_complete`, which should then do nothing; the same request follows at once, from its beginning, without
    the offer.
    """

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)
        self._receiver = receiver
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it: not all that comes is read

    def feed_data(self, data: Any) -> None:
        """Parses the next bytes that came."""
        while data:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_offer() + data[offer.args[0] :]

    def _head_without_offer(self) -> bytes:
        version = self.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.get_method(), self._receiver.url, version)]
        for name, value in self._receiver.headers:
            if name == b"connection":
                value = b",".join(token for token in value.split(b",") if token.strip().lower() not in OFFER)
            if name not in OFFER:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])
