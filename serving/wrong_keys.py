"""How many wrong API keys an address may send before it is told to wait."""

import ipaddress
import math
from collections.abc import Callable
from typing import Final

FREE_KEYS: Final = 10  # wrong keys in a row that are answered 401
SECONDS_A_KEY: Final = 6.0  # after which one more is
MOST_ADDRESSES: Final = 10_000  # remembered; beyond it the one that has been quiet longest is forgotten
IPV6_NETWORK: Final = 64  # bits that one customer of a provider has in common


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
