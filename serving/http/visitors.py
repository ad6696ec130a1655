"""Whose requests are answered where no key says so: under which names this server is asked, and from which pages.

Every page that somebody on this machine visits can reach this server through the browser. By DNS rebinding a name of
the page's owner becomes an address of this machine, and the page then counts as ours and reads the answers; but the
Host header still says that name. And without that a page of another origin can send a request: it cannot read the
answer, but the work is done. The headers Origin and Sec-Fetch-Site tell; programs other than browsers send neither.
"""

import functools
import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from starlette.types import Scope

from serving.errors import ApiError
from serving.settings import Settings

ANY_HOST: Final = "*"
HOST: Final = re.compile(r"(?P<name>\[[^\[\]]*\]|[^\[\]:]*)(:[0-9]*)?")
HARMLESS_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # they do no work, and another origin cannot read them
OWN_SITES: Final = frozenset({b"same-origin", b"none"})  # "none": the user's own doing, such as the address bar
MOST_CHARACTERS: Final = 300  # in a Host header; no name is longer
QUOTED: Final = 80  # characters


class Visitors:
    """The rules of one server.

    With `allowed_hosts` they always hold. Without, they hold for a server that has no key and listens on a loopback
    address: nobody but this machine is meant to reach it. Elsewhere a proxy may stand before it, with any name.

    Args:
        settings: the key, the host that is listened on, the names that are allowed.
    """

    def __init__(self, settings: Settings) -> None:
        self._names = frozenset(settings.allowed_hosts or ())
        self._always = settings.allowed_hosts is not None and ANY_HOST not in self._names
        self._on_loopback = (
            settings.allowed_hosts is None and settings.api_key is None and _is_loopback(settings.host.lower())
        )

    def check(self, scope: Scope, headers: Mapping[bytes, bytes], from_allowed_page: bool = False) -> None:
        """Refuses a request that a stranger's page may have made.

        Args:
            scope: of the request.
            headers: of the request.
            from_allowed_page: whether a setting allows its page to send it; its Host is looked at all the same.

        Raises:
            ApiError: 400 two Host headers, 421 a name that is not this server's, 403 a page of another origin.
        """
        server = scope.get("server")
        # BentoML's command line may listen elsewhere than the settings say, so the connection's own address counts too.
        if not (self._always or (self._on_loopback and server is not None and _is_loopback(server[0]))):
            return
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise ApiError(400, "invalid_host", "expected one Host header, got several; send one")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host and not self._is_ours(host):
            raise ApiError(
                421,
                "misdirected_request",
                f"expected a Host header that names this server, such as localhost, got {host[:QUOTED]!r}; "
                "ask for localhost, or start the server with this name in CONVMAE_ALLOWED_HOSTS",
            )
        is_harmless = from_allowed_page or scope["method"] in HARMLESS_METHODS
        if not is_harmless and self._is_from_elsewhere(headers, host):
            raise ApiError(
                403,
                "cross_origin",
                "expected a request of this server's own page or of a program, got one of a web page elsewhere; "
                "send it from a program, or start the server with that page's host in CONVMAE_ALLOWED_HOSTS",
            )

    def _is_ours(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        if match is None or len(host) > MOST_CHARACTERS:
            return False
        name = match["name"].removesuffix(".")
        if name in self._names or _is_loopback(name):
            return True
        # A name can be made to lead here by whoever owns it, an address cannot; probes of a cluster ask for one.
        return self._always and _address(name) is not None

    def _is_from_elsewhere(self, headers: Mapping[bytes, bytes], host: str) -> bool:
        site = headers.get(b"sec-fetch-site")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        authority = origin.partition("://")[2]
        if site in OWN_SITES or (site is None and (not origin or authority == host)):
            return False
        match = HOST.fullmatch(authority)
        return match is None or match["name"] not in self._names


@functools.lru_cache(maxsize=256)  # every request asks for the same few
def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
