"""What only a raw connection can do: announce too much, send too slowly, go away."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.running_server import RunningServer, post, post_head, read_answer, run_server
from tests.serving.sample_images import jpeg

KEY = "correct horse battery"


def pending_jobs(server: RunningServer) -> int:
    match = re.search(rb"^convmae_pending_jobs (\d+)", server.request("/metrics").body, re.MULTILINE)
    assert match is not None
    return int(match[1])


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection; waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture(scope="module")
def locked_server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_API_KEY": KEY}
    with run_server(tmp_path_factory.mktemp("locked"), settings) as running:
        yield running


def test_an_announced_body_beyond_the_limit_is_refused_before_it_is_read(server: RunningServer) -> None:
    with server.connect() as connection:  # row 13: not one byte of the body is sent
        connection.sendall(post_head("/v1/classify", "Content-Length: 20000001"))
        started = time.monotonic()
        answer = read_answer(connection)
        assert (answer.status, answer.code, answer.headers["connection"]) == (413, "body_too_large", "close")
        assert time.monotonic() - started < 0.5
        assert is_closed(connection)


def test_json_may_be_larger_than_other_bodies(server: RunningServer) -> None:
    for length, status in ((20_000_001, None), (28_000_001, 413)):
        with server.connect() as connection:
            headers = (f"Content-Length: {length}", "Content-Type: application/json")
            connection.sendall(post_head("/v1/classify", *headers))
            connection.settimeout(0.3)
            if status is None:
                with pytest.raises(TimeoutError):
                    read_answer(connection)
            else:
                assert read_answer(connection).status == status


def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_limit(server: RunningServer) -> None:
    block = b"10000\r\n" + bytes(65536) + b"\r\n"  # row 14
    with server.connect() as connection:
        connection.sendall(post_head("/v1/classify", "Transfer-Encoding: chunked"))
        sent = 0
        connection.setblocking(False)
        answer = None
        deadline = time.monotonic() + 20
        while answer is None and time.monotonic() < deadline:
            try:
                sent += connection.send(block[sent % len(block) :])
            except BlockingIOError:
                time.sleep(0.001)
            try:
                peeked = connection.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            assert peeked
            connection.setblocking(True)
            answer = read_answer(connection)
        assert answer is not None
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert 20_000_000 < sent < 28_000_000


def test_a_client_that_sends_all_of_a_large_body_first_still_gets_its_answer(server: RunningServer) -> None:
    body = bytes(25_000_000)
    with server.connect() as connection:
        connection.sendall(post("/v1/classify", body))
        assert read_answer(connection).status == 413


def test_a_client_that_goes_away_early_leaves_no_work_behind(server: RunningServer) -> None:
    with server.connect() as connection:  # row 15: fewer bytes than announced
        connection.sendall(post_head("/v1/classify", "Content-Length: 5000") + jpeg()[:1000])
    for _ in range(8):  # whole requests whose answers nobody waits for
        with server.connect() as connection:
            connection.sendall(post("/v1/classify", jpeg(1600, 1200)))
    deadline = time.monotonic() + 5
    while pending_jobs(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pending_jobs(server) == 0
    assert server.request("/v1/classify", jpeg()).status == 200


def test_a_length_that_is_no_number_is_an_error_in_the_usual_shape(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(post_head("/v1/classify", "Content-Length: abc"))
        answer = read_answer(connection)
        assert (answer.status, answer.code) == (400, "invalid_http")


def test_something_other_than_http_is_an_error_in_the_usual_shape(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert read_answer(connection).code == "invalid_http"


@pytest.mark.parametrize("ended", [True, False])
def test_headers_of_200_kilobytes_are_refused(server: RunningServer, ended: bool) -> None:
    head = post_head("/v1/classify", *(f"X-Filler-{index}: {'a' * 1000}" for index in range(200)))  # row 36
    with server.connect() as connection:
        connection.sendall(head if ended else head[:-4])
        answer = read_answer(connection)
        assert (answer.status, answer.code) == (431, "headers_too_large")


def test_a_body_of_a_byte_a_second_is_cut_off(server: RunningServer) -> None:
    with server.connect() as connection:  # row 36; this server gives a body two seconds
        connection.sendall(post_head("/v1/classify", "Content-Length: 1000"))
        started = time.monotonic()
        connection.settimeout(0.5)
        answer = None
        while answer is None:
            connection.sendall(b"a")
            try:
                answer = read_answer(connection)
            except TimeoutError:
                assert time.monotonic() - started < 10
        assert (answer.status, answer.code) == (408, "body_timeout")
        assert time.monotonic() - started < 4


def test_two_hundred_half_open_connections_do_not_disturb_others(server: RunningServer) -> None:
    connections = [server.connect() for _ in range(200)]  # row 36
    try:
        for connection in connections:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: te")
        started = time.monotonic()
        assert server.request("/v1/classify", jpeg()).status == 200
        assert time.monotonic() - started < 1
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("header", [None, "Authorization: Bearer wrong", "X-API-Key: ", "Authorization: Basic abc"])
def test_a_bad_key_is_refused_before_100_megabytes_are_read(locked_server: RunningServer, header: str | None) -> None:
    headers = ["Content-Length: 100000000", *([] if header is None else [header])]  # row 40
    with locked_server.connect() as connection:
        connection.sendall(post_head("/v1/classify", *headers))
        answer = read_answer(connection)
        assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        assert answer.headers["connection"] == "close"
        assert is_closed(connection)


@pytest.mark.parametrize("header", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
def test_the_right_key_opens_every_path(locked_server: RunningServer, header: dict[str, str]) -> None:
    assert locked_server.request("/v1/classify", jpeg(), header).status == 200
    assert locked_server.request("/v1/models", headers=header).status == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/metrics", "/nothing"])
def test_without_a_key_these_paths_are_closed(locked_server: RunningServer, path: str) -> None:
    assert locked_server.request(path).status == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/", "/docs"])
def test_without_a_key_these_paths_are_open(locked_server: RunningServer, path: str) -> None:
    assert locked_server.request(path).status == 200


def test_several_requests_share_a_connection(server: RunningServer) -> None:
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(post("/v1/classify", jpeg()))
            assert read_answer(connection).status == 200
        connection.sendall(post("/v1/classify", b"no image"))
        assert read_answer(connection).status == 400
        connection.sendall(post("/v1/classify", jpeg()))
        assert read_answer(connection).status == 200
