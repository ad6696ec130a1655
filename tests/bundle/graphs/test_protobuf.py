"""The reader of messages: what two readers could understand differently is refused."""

import pytest

from convmae_deploy.bundle.graphs import protobuf
from convmae_deploy.bundle.graphs.protobuf import (
    FIXED32,
    VARINT,
    Field,
    Fields,
    FormatProblem,
    Message,
    ProtobufReader,
    number,
    numbers,
    text,
)

FIELDS: Fields = {
    1: Field("name"),
    2: Field("count", VARINT),
    3: Field("sizes", VARINT, repeated=True),
    4: Field("parts", FIXED32, repeated=True),
    9: Field("a loop", refused=True),
}


def read(content: bytes) -> Message:
    return ProtobufReader().message(memoryview(content), FIELDS, "a record")


def test_fields_are_found_whatever_their_order() -> None:
    found = read(b"\x10\x05\x0a\x03abc\x18\x01\x18\x02")
    assert text(found, "name") == "abc"
    assert number(found, "count") == 5
    assert numbers(found, "sizes") == (1, 2)
    assert number(found, "missing", 7) == 7 and text(found, "missing") == ""


def test_a_negative_number_takes_ten_bytes() -> None:
    assert number(read(b"\x10" + b"\xff" * 9 + b"\x01"), "count") == -1


def test_packed_values_are_those_one_by_one() -> None:
    assert numbers(read(b"\x1a\x03\x01\x80\x02"), "sizes") == (1, 256)
    assert [bytes(part) for part in read(b"\x22\x08abcdefgh")["parts"]] == [b"abcd", b"efgh"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x0a\x05abc", "it is cut off"),
        (b"\x10\x80", "it is cut off"),
        (b"\x10" + b"\xff" * 11, "more than ten bytes"),
        (b"\x0a\x01a\x0a\x01b", "two fields name"),
        (b"\x08\x01", "name of a record is of another type"),
        (b"\x28\x01", "a record has the field 5, which no bundle has"),
        (b"\x4a\x01x", "a record has a loop, which no bundle has"),
        (b"\x0b", "there is no protobuf wire type 3"),
        (b"\x22\x07abcdefg", "it is cut off"),
    ],
)
def test_what_is_unclear_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(FormatProblem, match=reason):
        read(content)


def test_text_must_be_utf_8() -> None:
    with pytest.raises(FormatProblem, match="name is no text in UTF-8"):
        text(read(b"\x0a\x01\xff"), "name")


def test_a_file_of_very_many_fields_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 3)
    assert numbers(read(b"\x18\x01" * 3), "sizes") == (1, 1, 1)
    for content in (b"\x18\x01" * 4, b"\x1a\x03\x01\x01\x01"):
        with pytest.raises(FormatProblem, match="more than 3 fields"):
            read(content)
