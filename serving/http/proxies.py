"""Proxies before this server: the path that they show it under, and whom a request is from.

A proxy at `https://example.org/convmae/` may take `/convmae` off a request or leave it there. Both are understood where
a setting names the path, or a proxy that is trusted says it in `X-Forwarded-Prefix`. The application sees paths of its
own alone; what must know the other one asks `root_path`.
"""

import re
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from serving.setting_types import PATH

ROOT_PATH: Final = "convmae.root_path"
MAPPED: Final = re.compile(r"::ffff:(?P<address>[0-9.]+)", re.IGNORECASE)  # IPv4 on a socket that takes both


def root_path(scope: Scope) -> str:
    """The path that the server is shown under, without a slash at its end; empty where it has a host to itself."""
    return str(scope.get(ROOT_PATH, ""))


class RootPath:
    """The application under a path.

    Args:
        app: what it is shown to as if it were at `/`.
        path: the path, without a slash at its end; may be empty.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root = scope.setdefault(ROOT_PATH, self.path)
            path = scope["path"]
            if root and (path == root or path.startswith(f"{root}/")):
                scope["path"] = path[len(root) :] or "/"
        await self.app(scope, receive, send)


class TrustedProxies(ProxyHeadersMiddleware):
    """Believes what proxies say, where a request comes from one that is trusted."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        if scope["type"] == "http":
            scope["client"] = client = _unmapped(scope.get("client"))
            if (client[0] if client else None) in self.trusted_hosts and (prefix := _prefix(scope)):
                scope[ROOT_PATH] = prefix
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]


def _unmapped(client: tuple[str, int] | None) -> tuple[str, int] | None:
    match = MAPPED.fullmatch(client[0]) if client is not None else None
    return client if client is None or match is None else (match["address"], client[1])


def _prefix(scope: Scope) -> str | None:
    """What proxies have taken off a path; None where they say nothing, or something that is no path."""
    values = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
    # The first has seen the whole path; each one after it adds what it took off after a comma.
    parts = b",".join(values).decode("latin-1").split(",")
    prefix = "".join(part.strip().rstrip("/") for part in parts)
    return prefix if prefix and PATH.fullmatch(prefix) else None
