"""The server's key, and how many wrong ones an address may send before it is told to wait."""

import hashlib
import hmac
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

from pydantic import SecretStr

from serving.errors import ApiError
from serving.metrics import Metrics

logger = logging.getLogger("convmae_serving")

FREE_KEYS: Final = 10  # wrong keys in a row that are answered 401
SECONDS_A_KEY: Final = 6.0  # after which one more is
MOST_ADDRESSES: Final = 10_000  # remembered; beyond it the one that has been quiet longest is forgotten
IPV6_NETWORK: Final = 64  # bits that one customer of a provider has in common


class Keys:
    """Who may ask a server.

    Args:
        key: the server's; None: everybody may.
        metrics: where wrong keys are counted.
        clock: seconds that only grow.
    """

    def __init__(self, key: SecretStr | None, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest = None if key is None else _digest(key.get_secret_value().encode())
        self._metrics = metrics
        self._wrong = WrongKeys(clock)

    def check(self, headers: Mapping[bytes, bytes], client: tuple[str, int] | None) -> None:
        """Refuses a request without the key.

        Args:
            headers: of the request.
            client: its address and port; None where the connection has none.

        Raises:
            ApiError: 401, or 429 after too many wrong keys.
        """
        if self._digest is None:
            return
        given = _given(headers)
        # Digests of equal length, so that neither content nor length of the key shows in the time taken.
        if any([hmac.compare_digest(_digest(key), self._digest) for key in given]):
            return
        wait = self._note_wrong_key(address_of(client)) if given else 0
        if wait:
            message = f"expected a valid API key, got too many wrong ones from this address; try again in {wait} s"
            raise ApiError(429, "too_many_wrong_keys", message, headers={"Retry-After": str(wait)}, close=True)
        message = "expected a valid API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'; send one"
        raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})

    def _note_wrong_key(self, address: str) -> int:
        self._metrics.count("convmae_wrong_keys_total")
        logger.warning("a wrong API key from %s", address)
        return self._wrong.note(address)


class WrongKeys:
    """The wrong keys of each address.

    Only the answer to a wrong key depends on this: a right one is never held up, as many users may share an address
    behind a proxy.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._free_again: dict[str, float] = {}  # when an address has all its keys again; the quietest first

    def note(self, address: str) -> int:
        """Notes a wrong key; seconds until the address should send another, 0 while it has not sent too many."""
        now = self._clock()
        owed = max(0.0, self._free_again.pop(address, now) - now)
        wait = owed - (FREE_KEYS - 1) * SECONDS_A_KEY
        self._free_again[address] = now + owed + (SECONDS_A_KEY if wait <= 0 else 0.0)
        if len(self._free_again) > MOST_ADDRESSES:
            del self._free_again[next(iter(self._free_again))]
        return max(0, math.ceil(wait))


def address_of(client: tuple[str, int] | None) -> str:
    """The address of a client, or the network of a customer with IPv6; safe to print.

    Args:
        client: as ASGI names it; None where the connection has no address.
    """
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return "an unknown address"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), IPV6_NETWORK), strict=False))


def _given(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """The keys that a request carries: none, one, or one in each of the two headers that may hold it."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    given = (headers.get(b"x-api-key", b""), token.strip() if scheme.lower() == b"bearer" else b"")
    return [key for key in given if key]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
