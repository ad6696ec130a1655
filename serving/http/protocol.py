"""What uvicorn's protocol for httptools lacks, and nothing else:

- a limit to the bytes of headers and trailers, and to the time of these and of the rest of a body that nobody awaits;
- a limit to the number of connections, which the oldest silent one makes room for;
- an answer that is not read ends at a least rate, its bytes count, and the next request waits until it is read;
- offers of another protocol (h2c, WebSocket) are ignored and the request's body stays (see parser.py);
- what is no request, a tunnel, or a URL instead of a path, is refused in the shape of all our errors, or understood;
- the head and the start of the body of an answer are one packet;
- a request's scope says once its whole body is there, so that nobody starts a clock for it.
"""

import asyncio
import fcntl
import re
import struct
import termios
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.errors import ApiError, error_response
from serving.http.connection_limits import Connections
from serving.http.guard import WHOLE_BODY, new_request_id
from serving.http.parser import RequestParser

CONNECTIONS: Final = "convmae.connections"  # where the application's state has them, which uvicorn hands over
NOTE_REFUSAL: Final = "convmae.note_refusal"  # and `Guard.note_refusal`
MAX_HEADER_BYTES: Final = 64 * 1024
HEADER_SECONDS: Final = 10.0
HTTP_VERSIONS: Final = frozenset({"1.0", "1.1"})  # the parser also takes a line without one, and 2.0
INTERIM: Final = b"HTTP/1.1 100 "  # comes before the answer
WRITE_SECONDS: Final = 10.0  # over which a client must read its answer at the least rate
NO_TARGET: Final = (
    "expected a path of this server, such as /v1/classify, got something else after the method; see /docs"
)
WHOLE_URL: Final = re.compile(
    rb"https?://(?P<host>[^/?#@]+)(?P<target>([/?].*)?)", re.IGNORECASE
)  # sent by clients of proxies


class ResponseTransport(asyncio.Transport):
    """Sends an answer's head together with the first part of its body: one system call and one packet less.

    uvicorn writes the two one after the other, and uvloop sends each at once. What uvicorn's cycle of a request and its
    answer asks of a transport, and nothing else.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._begun = False  # an answer's head has been written
        self._head = b""  # that head, until it is sent

    def write(self, data: Any) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif self._begun or data.startswith(INTERIM):
            self._transport.write(data)
        else:
            self._begun, self._head = True, data

    def end(self) -> None:
        """The answer is complete, also one without a body."""
        self._begun = False
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self.end()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


NoteRefusal = Callable[[ApiError, str, tuple[str, int] | None, int], object]


class UnfitHead(Exception):
    """A request that is refused as soon as its headers are there."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with those limits, and its own errors in this server's shape."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = RequestParser(self)
        self._connections: Connections = self.app_state.get(CONNECTIONS, Connections())
        self.timeout_keep_alive = self._connections.keep_alive_seconds
        self._note_refusal: NoteRefusal | None = self.app_state.get(NOTE_REFUSAL)
        self._refusal: ApiError | None = None  # of the request being parsed, where its head is unfit

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._response = ResponseTransport(transport)
        self._header_bytes = 0  # headers, trailers and chunk sizes since a message began or a part of its body came
        self._restarted = False  # whether either was in the read at hand
        self._in_headers = True  # in those of a message that has begun, or is yet to come
        self._has_begun = False  # whether it has begun
        self._header_timer: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._too_slow)
        self._is_unread = False  # whether an answer is complete that the client has to read before anything else
        self._unsent = 0  # bytes that waited to be sent when the timer was started
        self._write_timer: asyncio.TimerHandle | None = None
        if not self._connections.add(self):
            reason = "every connection that the server may have holds a request; try again in 1 s"
            self._refuse(ApiError(503, "too_many_connections", reason, headers={"retry-after": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._connections.end_unread(self)
        self._stop_header_timer()
        self._unset_keepalive_if_required()  # uvicorn leaves it where the client reset the connection
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._restarted = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_headers and len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        if self._restarted:
            # How much of this read came after the restart is not known; what was kept of a head is.
            self._header_bytes = self._head_bytes() if self._has_begun else 0
        else:
            self._header_bytes += len(data)
        self._watch_client()
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(headers_too_large())

    def drop(self) -> bool:
        """Closes the connection, which holds no request; False where its last answer is not sent yet."""
        if self.transport.get_write_buffer_size():
            return False
        self.transport.close()
        return True

    def unread_bytes(self) -> int:
        """Bytes of its answer that are in memory because the client has not read them."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Closes the connection at once, and throws away what the client has not read."""
        self.transport.abort()

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()  # it may have been set since this read began
        super().on_message_begin()
        self._restarted = True
        self._has_begun = True

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return  # it comes again without its offer
        self._check_head()
        super().on_headers_complete()
        self._restarted = True
        self._in_headers = self._has_begun = False
        self._stop_header_timer()
        self._connections.busy(self)
        self.cycle.transport = self._response  # its task has not begun yet

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, but a body that came in one read is not copied, and reading goes on where it is complete."""
        self._restarted = True
        cycle = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # type: ignore[assignment]  # of which uvicorn's bytes(body) makes no copy
        elif isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body) + body
        else:
            cycle.body += body
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_headers = True
        super().on_message_complete()
        self.scope[WHOLE_BODY] = True  # type: ignore[typeddict-unknown-key]
        if self.cycle.response_complete:  # the rest of a body that its answer did not wait for
            self._stop_header_timer()

    def on_response_complete(self) -> None:
        self._response.end()
        if self.cycle.response_complete:
            self.cycle.body = bytearray()  # what its application left: the connection holds it until the next request
        if self.flow.write_paused and not self.transport.is_closing():
            self._is_unread = True  # the next request waits until this one's answer is read
            self.flow.pause_reading()
            return
        self._go_on()

    def _go_on(self) -> None:
        """Does what follows an answer: the next request, or waiting for it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writes()
        elif self.cycle.response_complete:  # that of the last request
            self._connections.idle(self)
            self._watch_client()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._connections.begin_unread(self)
        self._watch_writes()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._connections.end_unread(self)
        if self._is_unread:
            self._is_unread = False
            self._go_on()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_writes()

    def shutdown(self) -> None:
        super().shutdown()
        self._watch_writes()

    def send_400_response(self, msg: str) -> None:
        unfit = ApiError(400, "invalid_http", "expected an HTTP/1.1 request, got something else")
        self._refuse(self._refusal or unfit)

    def _check_head(self) -> None:
        """Looks at what the application does not: the size of the whole head, and what the request is for.

        Raises:
            UnfitHead: it is refused; the parser then stops, and `send_400_response` is called.
        """
        if self._head_bytes() > MAX_HEADER_BYTES:
            self._refusal = headers_too_large()
            raise UnfitHead
        if self.parser.get_http_version() not in HTTP_VERSIONS:
            raise UnfitHead
        tunnel = self.parser.get_method() == b"CONNECT"
        if self.url.startswith((b"/", b"*")) and not tunnel:
            return
        match = WHOLE_URL.fullmatch(self.url)
        if match is None or tunnel:
            self._refusal = ApiError(400, "invalid_target", NO_TARGET)
            raise UnfitHead
        # As a proxy would have sent it on: in place, as the scope has this list already.
        self.headers[:] = [
            (b"host", match["host"]),
            *((name, value) for name, value in self.headers if name != b"host"),
        ]
        self.url = match["target"] if match["target"].startswith(b"/") else b"/" + match["target"]

    def _head_bytes(self) -> int:
        """The size of the head at hand, as far as it has come."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _watch_client(self) -> None:
        """Starts a clock where the client has to go on: to end headers or a body, or to send the next request."""
        responded = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing() or self._header_timer is not None:
            return
        if self._has_begun or (responded and not self._in_headers):
            # Most headers come in one read and need no timer.
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)
        elif responded and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            message = f"expected the request's headers within {HEADER_SECONDS:g} s"
            self._refuse(ApiError(408, "header_timeout", message))

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _watch_writes(self) -> None:
        """Starts the clock of what is still to be sent.

        To be called only where nothing more is written before the client reads on: when the buffer is full, and when
        the connection closes, which waits for the buffer to empty. So an answer that is read at once costs no timer.
        """
        if self._write_timer is None and self.transport.get_write_buffer_size():  # else it may be closed by now
            self._unsent = self._bytes_to_send()
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self._check_writes)

    def _check_writes(self) -> None:
        self._write_timer = None
        least = WRITE_SECONDS * self._connections.least_bytes_per_second
        if self.transport.get_write_buffer_size() and self._unsent - self._bytes_to_send() < least:
            self.transport.abort()
        else:
            self._watch_writes()

    def _bytes_to_send(self) -> int:
        """Bytes that the client has not acknowledged.

        With those in the kernel, where it tells: it takes more only once a good part of what it holds, which may be
        megabytes, has gone out. On a slow line that takes longer than the limit.
        """
        size = self.transport.get_write_buffer_size()
        try:
            held = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return size
        return size + int(struct.unpack("i", held)[0])

    def _refuse(self, error: ApiError) -> None:
        """Ends the connection; with an error where the client is owed an answer and none has begun."""
        self._stop_header_timer()
        cycle = self.cycle
        responded = cycle is None or cycle.response_complete
        if self._in_headers and not responded:
            self.transport.abort()  # the request before is still being answered, and its answer is not this one
            return
        if not self._in_headers:
            if self.pipeline or (cycle.response_started and not responded):
                self.transport.abort()
                return
            if responded:  # before its body had ended; a second answer would be taken for that of another request
                self.transport.close()
                self._watch_writes()
                return
            cycle.disconnected = True  # its application hears that the client is gone, and can write nothing more
            cycle.message_event.set()
        request_id = new_request_id()
        response = error_response(error, request_id)
        further = (
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
        )
        if self._in_headers and self._note_refusal is not None:  # else its application keeps the record
            self._note_refusal(error, request_id, self.client, len(response.body))
        head = b"".join(name + b": " + value + b"\r\n" for name, value in (*response.raw_headers, *further))
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + bytes(response.body))
        self.transport.close()
        self._watch_writes()


def headers_too_large() -> ApiError:
    """The refusal of a head, or of trailers, beyond the limit."""
    return ApiError(431, "headers_too_large", f"expected at most {MAX_HEADER_BYTES} bytes of headers; send fewer")
