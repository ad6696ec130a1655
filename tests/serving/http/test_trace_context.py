"""The header that says which trace a request belongs to."""

import pytest

from serving.http.trace_context import trace_id_of

TRACE, PARENT = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"


@pytest.mark.parametrize(
    "header",
    [b"00-%b-%b-01" % (TRACE, PARENT), b" 00-%b-%b-00\t" % (TRACE, PARENT), b"01-%b-%b-01-later" % (TRACE, PARENT)],
)
def test_a_valid_header_names_a_trace(header: bytes) -> None:
    assert trace_id_of(header) == TRACE.decode()


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"00-%b-%b-01" % (TRACE.upper(), PARENT),
        b"00-%b-%b" % (TRACE, PARENT),
        b"00-%b-%b-01-more" % (TRACE, PARENT),
        b"01-%b-%b-01more" % (TRACE, PARENT),
        b"ff-%b-%b-01" % (TRACE, PARENT),
        b"00-%b-%b-01" % (b"0" * 32, PARENT),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-01" % (TRACE[1:] + b"\n", PARENT),
    ],
)
def test_anything_else_names_none(header: bytes | None) -> None:
    assert trace_id_of(header) is None
