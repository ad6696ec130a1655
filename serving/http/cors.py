"""Requests of web pages of other origins, where a setting allows them: Starlette's answers, in this server's shape."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError, error_response
from serving.http.guard import new_request_id
from serving.http.visitors import ALLOWED_PAGE
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


class Cors(CORSMiddleware):
    """Answers browsers that ask whether a page may send a request, and lets pages that may read the whole answer.

    Args:
        app: what answers the requests themselves, errors too.
        options: as Starlette's middleware takes them.
    """

    def __init__(self, app: ASGIApp, options: Mapping[str, Any]) -> None:
        super().__init__(app, **{**DEFAULTS, **options})
        self._exposes_all = not options.get("expose_headers")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            origin = Headers(scope=scope).get("origin")
            scope[ALLOWED_PAGE] = origin is not None and self.is_allowed_origin(origin)
        await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser's question."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        message = f"{bytes(response.body).decode()}; start the server with the page's origin in CONVMAE_CORS_ORIGINS"
        return error_response(ApiError(400, "cross_origin", message), new_request_id())

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Sends a part of an answer; its head names all of its headers, which a page may read only then."""
        if message["type"] == "http.response.start" and self._exposes_all and "origin" in request_headers:
            names = sorted({name.lower() for name, _ in message["headers"]})
            message["headers"] = [*message["headers"], (b"access-control-expose-headers", b", ".join(names))]
        await super().send(message, send, request_headers)
