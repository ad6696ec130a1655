"""The parser of requests, which ignores offers of other protocols."""

import pytest

from serving.http.parser import RequestParser


class Collector:
    """Notes the requests of a stream as the protocol does."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.requests: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]] = []
        self.parser = RequestParser(self)

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            self.requests.append((self.parser.get_method(), self.url, self.headers, b""))

    def on_body(self, body: bytes) -> None:
        method, url, headers, before = self.requests[-1]
        self.requests[-1] = (method, url, headers, before + body)


def parse(*pieces: bytes) -> Collector:
    collector = Collector()
    for piece in pieces:
        collector.parser.feed_data(piece)
    return collector


@pytest.mark.parametrize("connection", [b"Upgrade", b"upgrade, HTTP2-Settings", b"keep-alive ,UPGRADE"])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, h2c"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_request_comes_once_with_its_body_and_without_the_offer(
    connection: bytes, protocol: bytes, size: int
) -> None:
    head = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nConnection: %s\r\nUpgrade: %s\r\nHTTP2-Settings: AA\r\n" % (
        connection,
        protocol,
    )
    stream = 2 * (head + b"X: y\r\nContent-Length: 4\r\n\r\nbody") + b"GET /next HTTP/1.1\r\n\r\n"
    collector = parse(*(stream[at : at + size] for at in range(0, len(stream), size)))
    first, second, third = collector.requests
    assert first == second
    assert (first[0], first[1], first[3]) == (b"POST", b"/a?b=c", b"body")
    headers = dict(first[2])
    assert (headers[b"host"], headers[b"x"], headers[b"content-length"]) == (b"x", b"y", b"4")
    assert b"upgrade" not in headers and b"http2-settings" not in headers
    assert b"upgrade" not in headers[b"connection"].lower()
    assert third[:2] == (b"GET", b"/next")


def test_a_chunked_body_after_an_offer_is_read() -> None:
    head = b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    stream = head + b"2\r\nab\r\n0\r\n\r\n"
    assert parse(stream).requests[0][3] == b"ab"


def test_a_connection_stays_open_after_an_offer() -> None:
    collector = parse(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert collector.parser.should_keep_alive()
