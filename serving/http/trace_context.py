"""Which trace a request belongs to, by W3C's Trace Context.

The trace id that a client sends in `traceparent` is in the access log, in entries about failures and in spans. Nothing
is sent back: a response header for this is no standard yet, and X-Request-Id is in every answer.
"""

import re
from typing import Final

TRACEPARENT: Final = re.compile(
    rb"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-[0-9a-f]{2}(?P<more>-.*)?"
)


def trace_id_of(traceparent: bytes | None) -> str | None:
    """The 32 hexadecimal digits of the trace that a client names; None where it names none that is valid."""
    match = None if traceparent is None else TRACEPARENT.fullmatch(traceparent.strip())
    if match is None or match["version"] == b"ff" or not match["trace"].strip(b"0") or not match["parent"].strip(b"0"):
        return None
    if match["version"] == b"00" and match["more"] is not None:  # later versions may add to it
        return None
    return match["trace"].decode()
