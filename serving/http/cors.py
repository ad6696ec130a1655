"""Requests of web pages of other origins, where a setting allows them: Starlette's rules, in this server's shape."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.settings import Settings

DEFAULTS: Final = {  # what an origin that is allowed may do, unless it is said
    "allow_methods": ("GET", "HEAD", "POST"),
    "allow_headers": ("*",),
    "allow_private_network": True,  # the page may be on a public address, and this server on a private one
}


def cors_options(settings: Settings) -> dict[str, Any] | None:
    """What Starlette's middleware is given; None where no other origin is allowed."""
    if not settings.cors_origins:
        return None
    return {"allow_origins": settings.cors_origins}


class Cors:
    """Answers browsers that ask whether a page may send a request, and lets pages that may read the whole answer.

    Args:
        options: as Starlette's middleware takes them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._rules = CORSMiddleware(_nothing, **{**DEFAULTS, **options})
        self._exposes_all = not options.get("expose_headers")

    def allows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request is from a page of another origin that may send it."""
        origin = headers.get(b"origin")
        return origin is not None and self._rules.is_allowed_origin(origin.decode("latin-1"))

    def preflight(self, scope: Scope) -> Response | None:
        """The answer to a browser's question; None where a request is none.

        Raises:
            ApiError: 400 the page may not send such a request.
        """
        if not _is_preflight(scope):
            return None
        response = self._rules.preflight_response(Headers(scope=scope))
        if response.status_code == 200:
            return response
        advice = "start the server with the page's origin in CONVMAE_CORS_ORIGINS, and see the methods in /docs"
        raise ApiError(400, "cross_origin", f"{bytes(response.body).decode()}; {advice}")

    def sender(self, scope: Scope, send: Send) -> Send:
        """What sends the answer to a request, with what its browser has to know of it."""
        return send if _is_preflight(scope) else partial(self._send, send=send, headers=Headers(scope=scope))

    async def _send(self, message: Message, send: Send, headers: Headers) -> None:
        """Sends a part of an answer; its head names all of its headers, which a page may read only then."""
        if message["type"] == "http.response.start" and self._exposes_all and "origin" in headers:
            names = sorted({name.lower() for name, _ in message["headers"]})
            message["headers"] = [*message["headers"], (b"access-control-expose-headers", b", ".join(names))]
        await self._rules.send(message, send, headers)


def _is_preflight(scope: Scope) -> bool:
    if scope["method"] != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    return "origin" in headers and "access-control-request-method" in headers


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application in whose place Starlette's middleware is asked for its rules alone."""
