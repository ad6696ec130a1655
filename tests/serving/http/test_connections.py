"""What only a raw connection can do: announce too much, send too slowly, go away, be one of many, speak no HTTP."""

import contextlib
import json
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import memory
from tests.serving.running_server import RunningServer, post, post_head, read_response, run_server
from tests.serving.sample_images import jpeg
from tests.waiting import PATIENCE_SECONDS, wait_until

KEY = "correct horse battery"
FEW_DESCRIPTORS = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
runpy.run_module("serving", run_name="__main__")
"""
HOST = b"Host: localhost\r\n"
ODD = {  # the start of each request, which gets what else it needs
    "tunnel": b"CONNECT h:443 HTTP/1.1\r\n",
    "URL without a path": b"GET http://localhost HTTP/1.1\r\n",
    "URL of another host": b"GET http://h/livez HTTP/1.1\r\n",
    "URL without a host": b"GET http:// HTTP/1.1\r\n",
    "bracket in a URL": b"GET http://[::1 HTTP/1.1\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n",
    "no slash": b"GET livez HTTP/1.1\r\n",
    "two slashes": b"GET //h/livez HTTP/1.1\r\n",
    "small letters": b"get /livez HTTP/1.1\r\n",
    "unknown method": b"HELLO / HTTP/1.1\r\n",
    "rare method": b"PROPFIND / HTTP/1.1\r\n",
    "HTTP/0.9": b"GET /livez\r\n",
    "HTTP/2": b"GET /livez HTTP/2.0\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "SSH": b"SSH-2.0-client\r\n",
    "zeros": bytes(1000),
    "zero in a path": b"GET /a\0b HTTP/1.1\r\n",
    "zero in a header": b"GET /livez HTTP/1.1\r\nX: a\0b\r\n",
    "bytes in a path": b"GET /\xff\xfe HTTP/1.1\r\n",
    "bytes in a query": b"GET /v1/models?\xff HTTP/1.1\r\n",
    "no hexadecimal digits": b"GET /%zz%1 HTTP/1.1\r\n",
    "no UTF-8": b"GET /%ff%fe HTTP/1.1\r\n",
    "half a letter": b"GET /page/%ed%a0%80.js HTTP/1.1\r\n",
    "name of 300 letters": b"GET /page/" + b"a" * 300 + b".js HTTP/1.1\r\n",
    "name of 8000 letters": b"GET /page/" + b"a" * 8000 + b".js HTTP/1.1\r\n",
    "model of 8000 letters": b"GET /v1/models/" + b"a" * 8000 + b" HTTP/1.1\r\n",
    "path of 70 kB": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n",
    "header of 66 kB": b"GET /livez HTTP/1.1\r\nX: " + b"a" * 66_000 + b"\r\n",
    "headers by the thousand": b"GET /livez HTTP/1.1\r\n" + b"a:b\r\n" * 13_000,
    "length of 5000 zeros": b"POST /v1/classify HTTP/1.1\r\nContent-Length: " + b"0" * 5000 + b"\r\n",
    "length of 5000 nines": b"POST /v1/classify HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n",
    "length twice": b"POST /v1/classify HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 1\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n",
    "form without sense": b"POST /v1/classify HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=\xff\r\n",
    "unknown expectation": b"POST /v1/nothing HTTP/1.1\r\nExpect: tea\r\n",
}


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
        answer = read_response(connection)
        assert (answer.status, answer.code, answer.headers["connection"]) == (413, "body_too_large", "close")
        assert is_closed(connection)


def test_json_may_be_larger_than_other_bodies(server: RunningServer) -> None:
    for length, status in ((20_000_001, 100), (28_000_001, 413)):  # 100: the server asks for the body
        with server.connect() as connection:
            headers = (f"Content-Length: {length}", "Content-Type: application/json", "Expect: 100-continue")
            connection.sendall(post_head("/v1/classify", *headers))
            assert read_response(connection).status == status


def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_limit(server: RunningServer) -> None:
    block = b"10000\r\n" + bytes(65536) + b"\r\n"  # row 14
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # what waits in the kernel counts as sent
        connection.sendall(post_head("/v1/classify", "Transfer-Encoding: chunked"))
        sent, answered = 0, False
        while not answered:
            readable, writable, _ = select.select([connection], [connection], [], PATIENCE_SECONDS)
            assert readable or writable
            answered = bool(readable)
            if not answered:
                sent += connection.send(block[sent % len(block) :])
        answer = read_response(connection)
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert 20_000_000 < sent < 28_000_000


def test_a_client_that_sends_all_of_a_large_body_first_still_gets_its_answer(server: RunningServer) -> None:
    body = bytes(25_000_000)
    with server.connect() as connection:
        connection.sendall(post("/v1/classify", body))
        assert read_response(connection).status == 413


def test_a_client_that_goes_away_early_leaves_no_work_behind(server: RunningServer) -> None:
    with server.connect() as connection:  # row 15: fewer bytes than announced
        connection.sendall(post_head("/v1/classify", "Content-Length: 5000") + jpeg()[:1000])
    for _ in range(8):  # whole requests whose answers nobody waits for
        with server.connect() as connection:
            connection.sendall(post("/v1/classify", jpeg(1600, 1200)))
    wait_until(lambda: not server.pending_jobs())
    assert server.request("/v1/classify", jpeg()).status == 200


def test_a_length_that_is_no_number_is_an_error_in_the_usual_shape(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(post_head("/v1/classify", "Content-Length: abc"))
        answer = read_response(connection)
        assert (answer.status, answer.code) == (400, "invalid_http")


def test_something_other_than_http_is_an_error_in_the_usual_shape(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert read_response(connection).code == "invalid_http"


@pytest.mark.parametrize("ended", [True, False])
def test_headers_of_200_kilobytes_are_refused(server: RunningServer, ended: bool) -> None:
    head = post_head("/v1/classify", *(f"X-Filler-{index}: {'a' * 1000}" for index in range(200)))  # row 36
    with server.connect() as connection:
        connection.sendall(head if ended else head[:-4])
        answer = read_response(connection)
        assert (answer.status, answer.code) == (431, "headers_too_large")


def test_a_body_of_a_byte_a_second_is_cut_off(server: RunningServer) -> None:
    with server.connect() as connection:  # row 36; this server gives a body two seconds
        connection.sendall(post_head("/v1/classify", "Content-Length: 1000"))
        pieces = 0
        while not select.select([connection], [], [], 0.5)[0]:
            connection.sendall(b"a")
            pieces += 1
            assert pieces < 2 * PATIENCE_SECONDS
        answer = read_response(connection)
        assert (answer.status, answer.code) == (408, "body_timeout")


def test_two_hundred_half_open_connections_do_not_disturb_others(server: RunningServer) -> None:
    connections = [server.connect() for _ in range(200)]  # row 36
    try:
        for connection in connections:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: te")
        assert server.request("/v1/classify", jpeg()).status == 200
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_many_bodies_at_once_took_is_given_back_once_they_are_answered(bundle: Path, tmp_path: Path) -> None:
    size, count, patience = 2_000_000, 30, str(PATIENCE_SECONDS)
    settings = {"CONVMAE_BODY_TIMEOUT_SECONDS": patience, "CONVMAE_MAX_QUEUE_SECONDS": patience}
    with run_server(tmp_path, {"CONVMAE_BUNDLE": str(bundle)} | settings) as server, contextlib.ExitStack() as stack:
        before = memory(server.process.pid)
        connections = [stack.enter_context(server.connect()) for _ in range(count)]
        for connection in connections:
            connection.sendall(post_head("/v1/classify", f"Content-Length: {size}") + bytes(size - 1))
        wait_until(lambda: memory(server.process.pid) > before + count * size / 2)  # held: none is complete
        for connection in connections:
            connection.sendall(b"0")
        assert {read_response(connection).status for connection in connections} == {400}
        wait_until(lambda: memory(server.process.pid) < before + count * size / 4)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_an_odd_request_gets_an_error_in_the_usual_shape_and_nothing_of_it_is_logged(
    server: RunningServer, odd: bytes
) -> None:
    logged = server.log.read_text()
    with server.connect() as connection:
        connection.sendall(odd + HOST + b"Connection: close\r\n\r\n")
        received = b""
        while data := connection.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if odd.startswith(b"GET http://localhost "):  # an unusual way to ask for the page
        assert status == 200
    else:
        assert 400 <= status < 500
        assert set(json.loads(body)["error"]) == {"code", "message", "field", "request_id"}
    assert server.log.read_text() == logged


def test_an_offer_of_http_2_is_ignored_and_the_connection_goes_on(server: RunningServer) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(post("/v1/classify", jpeg(), *offer))
            assert read_response(connection).status == 200


def test_names_and_pages_of_others_are_refused_by_a_local_server_without_a_key(server: RunningServer) -> None:
    for path in ("/", "/v1/models"):
        assert server.request(path, headers={"Host": "evil.example"}).status == 421
    page = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    answer = server.request("/v1/classify", jpeg(), page)
    assert (answer.status, answer.code) == (403, "cross_origin")
    assert server.request("/v1/classify", jpeg(), {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}).status == 200


@pytest.mark.slow
def test_many_silent_connections_neither_lock_others_out_nor_end_a_request(bundle: Path, tmp_path: Path) -> None:
    photo = jpeg()
    with run_server(tmp_path, {"CONVMAE_BUNDLE": str(bundle)}, command=("-c", FEW_DESCRIPTORS)) as few:
        with few.connect() as slow, contextlib.ExitStack() as stack:
            slow.sendall(post_head("/v1/classify", f"Content-Length: {len(photo)}") + photo[:100])
            for _ in range(300):
                stack.enter_context(few.connect())
            for _ in range(3):
                assert few.request("/v1/classify", photo).status == 200
            slow.sendall(photo[100:])
            assert read_response(slow).status == 200
        assert "Traceback" not in few.log.read_text()


@pytest.mark.parametrize("header", [None, "Authorization: Bearer wrong", "X-API-Key: ", "Authorization: Basic abc"])
def test_a_bad_key_is_refused_before_100_megabytes_are_read(locked_server: RunningServer, header: str | None) -> None:
    headers = ["Content-Length: 100000000", *([] if header is None else [header])]  # row 40
    with locked_server.connect() as connection:
        connection.sendall(post_head("/v1/classify", *headers))
        answer = read_response(connection)
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
            assert read_response(connection).status == 200
        connection.sendall(post("/v1/classify", b"no image"))
        assert read_response(connection).status == 400
        connection.sendall(post("/v1/classify", jpeg()))
        assert read_response(connection).status == 200


def test_after_many_wrong_keys_the_right_one_works_and_the_log_has_their_address_alone(
    locked_server: RunningServer,
) -> None:
    wrong = [{"X-API-Key": f"wrong-{index}"} for index in range(50)]  # the last test, as the others' would count too
    assert {locked_server.request("/v1/models", headers=headers).status for headers in wrong} == {401, 429}
    assert locked_server.request("/v1/models", headers={"X-API-Key": KEY}).status == 200
    log = locked_server.log.read_text()
    assert "a wrong API key from 127.0.0.1" in log
    assert "wrong-" not in log and KEY not in log
