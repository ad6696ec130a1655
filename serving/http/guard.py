"""The outermost layer: everything that holds for every request, as plain ASGI.

In this order: request id, questions of browsers, draining, Host and Origin, key, body limits; then the application;
then the metrics. Whatever is raised inside becomes one JSON error.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convmae_deploy.machine import trim_heap
from serving.errors import ApiError, ClientGone, busy, error_response, routing_error
from serving.http.cors import Cors
from serving.http.keys import Keys
from serving.http.trace_context import trace_id_of
from serving.http.visitors import Visitors
from serving.metrics import Metrics
from serving.settings import Settings

logger = logging.getLogger("convmae_serving")

EXCHANGE: Final = "convmae.exchange"  # where a request's scope has it until it is answered
WHOLE_BODY: Final = "convmae.whole_body"  # in the scope once the protocol has all of the body
LENGTH_DIGITS: Final = 20  # digits of a Content-Length; more are no length that the protocol lets through
LINGER_SECONDS: Final = 1.0
SKIPPED_BYTES: Final = 1_000_000
BURST_BYTES: Final = 8_000_000  # of bodies held together, whose memory is given back to the machine afterwards
BURST_OVER: Final = 0.25  # of the most held: a burst has passed
OPEN_PATHS: Final = frozenset(
    {"/", "/docs", "/openapi.json", "/livez", "/readyz", "/healthz", "/health", "/ping"}
    | {"/v2/health/live", "/v2/health/ready"}
)
ADMIN_PREFIX: Final = "/v2/repository/"
OPEN_PREFIX: Final = "/page/"
ALIVE_PATHS: Final = frozenset(
    {"/livez", "/v2/health/live", "/readyz", "/metrics"}
)  # still answered by the application while draining
UNMATCHED: Final = "unmatched"
UNKNOWN_METHOD: Final = "_OTHER"  # as OpenTelemetry writes it
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
PICKLE_TYPES: Final = re.compile(rb"pickle|x-python|x-joblib|x-dill")


class BodyLimits(Protocol):
    """What the body of a request may take."""

    @property
    def body_bytes(self) -> int:
        """Where it is no JSON, for which there is a setting."""
        ...

    @property
    def body_seconds(self) -> float:
        """In which it, or the next part of it at the least rate, must be received."""
        ...


class Exchange:
    """One request on its way: what the guard has seen of it so far."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.request_id = ""
        self.status = 0  # the response's; 0 until it has started
        self.error_code: str | None = None  # of the error that it was answered with
        self.sent_bytes = 0  # of the response's body
        self.trace_id: str | None = None  # as the client named it
        self.span: Any = None  # OpenTelemetry's, where spans are made
        self.model: str | None = None  # which one ran
        self.phases: Mapping[str, float] = {}  # seconds of each part of the work
        self.intervals: Sequence[tuple[str, float, float]] = ()  # its parts: phase, start by perf_counter(), seconds
        self.body_bytes = 0
        self.body_limit = 0
        self.limits: BodyLimits | None = None  # of what this request carries, once it has been looked at
        self.held_bytes = 0  # for the body, until the response is sent
        self.more_body = True
        self.close = False
        self._receive = receive
        self._send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])

    @property
    def title(self) -> str:
        """What the request is called in the log."""
        return f"request {self.request_id}" + (f" of trace {self.trace_id}" if self.trace_id else "")

    async def receive(self) -> Message:
        """The next message; counts the body and refuses one that grows beyond its limit."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.body_bytes += len(message.get("body", b""))
            self.more_body = message.get("more_body", False)
            if self.body_bytes > self.body_limit:
                raise too_large(self.body_limit)
        return message

    async def disconnected(self) -> None:
        """Returns when the client has gone away; to be called after the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """Sends an answer's message with the headers that every answer carries."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            headers.append((b"x-content-type-options", b"nosniff"))
            if self.close:
                headers.append((b"connection", b"close"))
            message = {"type": "http.response.start", "status": self.status, "headers": headers}
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answers with an error; while the body is still arriving, reads on a moment so that the answer gets through.

        Closing a connection whose client is still sending makes its kernel discard the answer. So the answer is sent at
        once, what arrives is thrown away for at most a second, and only then is the connection closed.
        """
        self.error_code = error.code
        if self.status:
            self.close = True
            return
        # A client that waits to be asked for its body may never send it, so what follows may be its next request.
        stays = self._body_is_small() and b"expect" not in self.headers
        self.close = self.close or error.close or (self._body_is_arriving() and not stays)
        response = error_response(error, self.request_id, self.scope["path"])
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self.send(start)
        if self.close and self._body_is_arriving():
            await self.send({"type": "http.response.body", "body": response.body, "more_body": True})
            await self._discard_body()
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self.send({"type": "http.response.body", "body": response.body, "more_body": False})

    def _body_is_arriving(self) -> bool:
        return self.more_body and (self.announced_bytes() > 0 or b"transfer-encoding" in self.headers)

    def announced_bytes(self) -> int:
        """The length of the body in bytes, 0 where the client did not say."""
        digits = self.headers.get(b"content-length", b"0").lstrip(b"0")
        return int(digits[:LENGTH_DIGITS]) if digits.isdigit() else 0

    def _body_is_small(self) -> bool:
        """Whether what is still to come may simply be skipped, so that the connection stays open."""
        return b"transfer-encoding" not in self.headers and self.announced_bytes() <= SKIPPED_BYTES

    async def _discard_body(self) -> None:
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while self.more_body:
                    message = await self._receive()
                    self.more_body = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            pass


class Observer(Protocol):
    """What keeps a record of requests, beside the metrics."""

    def begin(self, exchange: Exchange) -> None:
        """A request has come."""

    def end(self, exchange: Exchange, route: str, seconds: float) -> None:
        """It was answered.

        Args:
            exchange: the request.
            route: template of its route, or a fixed word.
            seconds: that it took.
        """

    def close(self, seconds: float) -> None:
        """Writes or sends what is left, in so many seconds at most."""


class Guard:
    """The ASGI application around the application.

    Args:
        app: the routes.
        settings: limits and the API key.
        metrics: where every answered request is counted.
        body_limits: what the body of a request may take, as far as its head says.
        clock: seconds that only grow, for what is counted by time.
        observers: what else keeps a record of requests.
        cors: pages of other origins that may ask; None: no other's.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        body_limits: Callable[[Scope], BodyLimits],
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
        cors: Cors | None = None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.body_limits = body_limits
        self.observers = observers
        self.cors = cors
        self.draining = False  # requests are still answered, but the next ones should go elsewhere
        self.refusing = False  # they are refused
        self.in_flight = 0
        self.buffered_bytes = 0
        self._most_buffered = 0  # since memory was last given back
        self._visitors = Visitors(settings)
        self._keys = Keys(settings.api_key, metrics, clock)
        self._admin_keys = Keys(settings.admin_key, metrics, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = Exchange(scope, receive, send if self.cors is None else self.cors.sender(scope, send))
        exchange.close = self.draining
        scope[EXCHANGE] = exchange
        self.in_flight += 1
        try:
            exchange.request_id = _request_id(exchange.headers.get(b"x-request-id"))
            exchange.trace_id = trace_id_of(exchange.headers.get(b"traceparent"))
            for observer in self.observers:
                observer.begin(exchange)
            await self._handle(exchange)
        finally:
            self.in_flight -= 1
            self._let_go(exchange)
            self._note(exchange, time.perf_counter() - started)
            del scope[EXCHANGE]  # they hold each other, and would stay until Python looks for cycles of objects

    def note_refusal(self, error: ApiError, request_id: str, client: tuple[str, int] | None, sent_bytes: int) -> None:
        """Keeps a record of what the protocol refused before it was a whole request."""
        scope: Scope = {
            "type": "http",
            "method": UNKNOWN_METHOD,
            "path": "",
            "scheme": "http",
            "headers": [],
            "client": client,
        }
        exchange = Exchange(scope, _never, _never)
        exchange.request_id, exchange.sent_bytes = request_id, sent_bytes
        exchange.status, exchange.error_code = error.status, error.code
        for observer in self.observers:
            observer.begin(exchange)
        self._note(exchange, 0.0)

    def _note(self, exchange: Exchange, seconds: float) -> None:
        route = getattr(exchange.scope.get("endpoint"), "path", UNMATCHED)  # its template, never the path itself
        self.metrics.observe(route, exchange.scope["method"], exchange.status, seconds, exchange.error_code)
        for observer in self.observers:
            observer.end(exchange, route, seconds)

    async def _handle(self, exchange: Exchange) -> None:
        try:
            answer: ASGIApp | None = None if self.cors is None else self.cors.preflight(exchange.scope)
            if answer is None:
                self._check(exchange)
                answer = self.app
            await answer(exchange.scope, exchange.receive, exchange.send)
        except ApiError as error:
            await exchange.refuse(error)
        except HTTPException as error:
            await exchange.refuse(routing_error(error))
        except ClientGone:
            # Nobody reads this, but the metrics count it.
            await exchange.refuse(ApiError(400, "client_disconnected", "the client closed the connection"))
        except Exception:
            logger.exception("%s failed", exchange.title)
            message = "the server failed to answer; its log says why under this request id"
            await exchange.refuse(ApiError(500, "internal_error", message))

    def _check(self, exchange: Exchange) -> None:
        """All that can be refused before the body is read."""
        path = exchange.scope["path"]
        if self.refusing and path not in ALIVE_PATHS:
            message = "the server is shutting down; send this request to another one"
            raise ApiError(503, "draining", message, headers={"Retry-After": "1"})
        from_allowed_page = self.cors is not None and self.cors.allows(exchange.headers)
        self._visitors.check(exchange.scope, exchange.headers, from_allowed_page)
        if path.startswith(ADMIN_PREFIX):
            if self.settings.admin_key is None:
                message = "expected a server that was started with CONVMAE_ADMIN_KEY; ask its owner to set one"
                raise ApiError(403, "repository_off", message)
            self._admin_keys.check(exchange.headers, exchange.scope.get("client"))
        elif not (path in OPEN_PATHS or path.startswith(OPEN_PREFIX)):
            self._keys.check(exchange.headers, exchange.scope.get("client"))
        self._check_body(exchange)

    def _check_body(self, exchange: Exchange) -> None:
        headers = exchange.headers
        content_type = headers.get(b"content-type", b"").lower()
        is_json = content_type.startswith(b"application/json")
        exchange.limits = limits = self.body_limits(exchange.scope)
        exchange.body_limit = self.settings.max_json_body_bytes if is_json else limits.body_bytes
        if PICKLE_TYPES.search(content_type):
            raise ApiError(415, "unsupported_media_type", "pickled data is never read; send an image file")
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            message = "compressed request bodies are not read; send the file as it is, without Content-Encoding"
            raise ApiError(415, "unsupported_content_encoding", message)
        if exchange.announced_bytes() > exchange.body_limit:
            raise too_large(exchange.body_limit)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self.app(scope, receive, send)

    async def read_body(self, scope: Scope) -> bytes:
        """The whole body of a request.

        Raises:
            ApiError: 413 too large, 408 too slow, 503 too much buffered by all requests together.
            ClientGone: the client closed the connection first.
        """
        exchange: Exchange = scope[EXCHANGE]
        chunks: list[bytes] = []
        try:
            await self._receive_body(exchange, chunks)
        except BaseException:
            # Now, and not once the client has read its refusal: else of many large bodies that come at once each would
            # take the room of the others, and all would be refused.
            chunks.clear()
            self._let_go(exchange)
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _receive_body(self, exchange: Exchange, chunks: list[bytes]) -> None:
        """Receives a body whose client has so much time for each part that the least rate gives, and for the last."""
        clock = asyncio.get_running_loop().time
        assert exchange.limits is not None  # nothing is read before it is checked
        seconds = exchange.limits.body_seconds
        part = seconds * self.settings.min_bytes_per_second
        due = part
        try:
            # A timer is made only where there is something to wait for.
            async with asyncio.timeout(None if WHOLE_BODY in exchange.scope else seconds) as limit:
                while exchange.more_body:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    exchange.held_bytes += len(chunk)
                    self.buffered_bytes += len(chunk)
                    self._most_buffered = max(self._most_buffered, self.buffered_bytes)
                    if self.buffered_bytes > self.settings.max_buffered_bytes:
                        raise busy("the server holds as many request bodies as it may", 1)
                    if exchange.more_body and exchange.body_bytes >= due:
                        due = exchange.body_bytes + part
                        limit.reschedule(clock() + seconds)
        except TimeoutError:
            message_text = (
                f"expected the whole body, or {part:.0f} bytes more of it, within {seconds:g} s; "
                "send it faster or send less"
            )
            raise ApiError(408, "body_timeout", message_text, close=True) from None

    def _let_go(self, exchange: Exchange) -> None:
        self.buffered_bytes -= exchange.held_bytes
        exchange.held_bytes = 0
        if self._most_buffered >= BURST_BYTES and self.buffered_bytes <= BURST_OVER * self._most_buffered:
            self._most_buffered = self.buffered_bytes
            trim_heap()  # a third of a millisecond, or 16 after 100 MB: malloc would keep them for ever


async def _never(*_: object) -> Any:
    raise AssertionError("nothing comes or goes any more")


def too_large(limit: int) -> ApiError:
    """The refusal of a body beyond `limit` bytes."""
    return ApiError(413, "body_too_large", f"expected a body of at most {limit} bytes; send a smaller file or fewer")


def new_request_id() -> str:
    """128 random bits in hexadecimal.

    Not from the operating system as uuid4 has them: that call lets go of Python's lock, and under load getting it back
    costs a tenth of a millisecond. Nothing is protected by these bits.
    """
    return f"{random.getrandbits(128):032x}"


def _request_id(given: bytes | None) -> str:
    if given is not None and REQUEST_ID.fullmatch(given):
        return given.decode()
    return new_request_id()
