"""The soak's verdicts, its clients against a real server, and one very short run."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.serving import write_photo
from benchmarks.soak import KEY, SWAP, Sample, Soak, counted, draw, load, print_soak, replacement
from benchmarks.soak_clients import (
    BAD,
    GOOD,
    PLANNED,
    SLOW,
    Answer,
    GoodClients,
    Kind,
    Outcomes,
    Target,
    message,
    outcome_of,
    pieces,
    read_answer,
)
from tests.bundle_factory import make_bundle
from tests.serving.running_server import RunningServer, run_server

SECONDS = 100.0


async def at_once(seconds: float) -> None:
    """In place of a pause."""


def soak(megabytes: Callable[[float], float] = lambda seconds: 200.0) -> Soak:
    """One without faults, but for what its memory is at each moment."""
    samples = [Sample(float(at), megabytes(at), 30, 3, at) for at in range(0, 101, 2)]
    counts = {GOOD: Counter({"200": 90, PLANNED: 1}), SWAP: Counter({"200": 2}), "a text": Counter({"400": 5})}
    return Soak(SECONDS, 50.0, Outcomes(counts, [0.1]), samples, idle=(14, 15))


def test_flat_memory_few_descriptors_and_expected_answers_pass() -> None:
    assert soak().failed_gates() == []


def test_memory_of_the_warm_up_and_of_a_moment_is_no_growth_but_a_slope_is() -> None:
    assert soak(lambda at: 100.0 if at < 18 else 200.0).failed_gates() == []
    assert soak(lambda at: 400.0 if at == 70 else 200.0).failed_gates() == []
    (sentence,) = soak(lambda at: 200.0 + at / 5).failed_gates()
    assert sentence == "memory grew by 5.8 %, at most 5 % is flat"


@pytest.mark.parametrize(
    ("kind", "outcome", "words"),
    [
        (GOOD, "500", "good: expected 200, found 500: 1"),
        (GOOD, "503", "good: expected 200, found 503: 1"),
        (GOOD, "ConnectionResetError", "found ConnectionResetError: 1"),
        (SWAP, "404", "model replaced: expected 200"),
        ("a text", "200", "a text: expected 400, found 200: 1"),
        ("slow upload", "408", "slow upload: expected 200, found 408: 1"),
    ],
)
def test_an_answer_that_was_not_expected_is_a_fault(kind: str, outcome: str, words: str) -> None:
    found = soak()
    found.outcomes.add(kind, outcome)
    (sentence,) = found.failed_gates()
    assert words in sentence


def test_descriptors_that_stay_open_are_a_fault() -> None:
    (sentence,) = replace(soak(), idle=(14, 18)).failed_gates()
    assert sentence == "18 descriptors stay open, 14 were open before"
    assert counted({"400": 1, "200": 3}) == "200: 3, 400: 1"


def test_a_server_that_refuses_much_does_not_pass_though_each_refusal_is_planned() -> None:
    found = soak()
    found.outcomes.counts[GOOD] = Counter({"200": 94, PLANNED: 6})
    assert found.failed_gates() == ["94 % of good requests were served, at least 95 % must be"]


def test_the_picture_is_small_and_shows_both(tmp_path: Path) -> None:
    draw(soak(), tmp_path / "soak.png")
    with Image.open(tmp_path / "soak.png") as picture:
        assert picture.size == (700, 400)
    assert (tmp_path / "soak.png").stat().st_size < 60_000


def read(content: bytes) -> Answer:
    """What is read of an answer's bytes, after which the connection ends."""

    async def do() -> Answer:
        reader = asyncio.StreamReader()
        reader.feed_data(content)
        reader.feed_eof()
        return await read_answer(reader)

    return asyncio.run(do())


def test_answers_are_read_to_their_end_and_planned_refusals_told_from_others() -> None:
    good = read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert (good.outcome, good.stays, good.length) == ("200", True, 2)
    assert read(b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\nConnection: close\r\n\r\n").outcome == PLANNED
    assert read(b"HTTP/1.1 503 Busy\r\n\r\n").outcome == "503"
    assert not read(b"HTTP/1.1 408 Late\r\nconnection: Close\r\n\r\n").stays
    with pytest.raises(ConnectionResetError):
        read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok")


def test_a_request_may_announce_more_than_it_holds_and_pieces_lose_nothing() -> None:
    assert message("POST", "/a", b"xy", "A: b").endswith(b"Content-Length: 2\r\nA: b\r\n\r\nxy")
    assert b"Content-Length: 9\r\n" in message("POST", "/a", b"xy", length=9)
    assert b"".join(pieces(bytes(range(256)))) == bytes(range(256)) and len(list(pieces(bytes(2000)))) == 20
    assert replacement("m").startswith(b"POST /v2/repository/models/m/load HTTP/1.1\r\n")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_BODY_TIMEOUT_SECONDS": "0.3", "CONVMAE_ADMIN_KEY": KEY}
    with run_server(tmp_path_factory.mktemp("server"), settings) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*BAD, *SLOW], ids=lambda kind: kind.name)
def test_each_kind_of_client_meets_what_is_expected(server: RunningServer, tmp_path: Path, kind: Kind) -> None:
    target = Target(server.port, write_photo(tmp_path / "photo.jpg").read_bytes(), at_once)
    assert asyncio.run(outcome_of(kind.act(target))) == kind.expected


@pytest.mark.slow
def test_good_clients_send_at_their_rate_keep_connections_and_outlive_closed_ones(
    server: RunningServer, tmp_path: Path
) -> None:
    target = Target(server.port, write_photo(tmp_path / "photo.jpg", (50, 40)).read_bytes())
    outcomes = Outcomes()
    asyncio.run(GoodClients(target, outcomes).run(rate=200.0, seconds=0.1))
    assert outcomes.counts == {GOOD: Counter({"200": 20})} and len(outcomes.latencies) == 20


@pytest.mark.slow
def test_all_clients_and_looks_at_the_server_run_together_and_end(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target(server.port, write_photo(tmp_path / "photo.jpg", (50, 40)).read_bytes())
    run = Soak(0.5, 20.0)
    asyncio.run(load(run, target, server.process.pid, "tiny", 0.02))
    print_soak(run)
    assert run.outcomes.counts[GOOD] == {"200": 10} and run.outcomes.counts[SWAP] == {"200": 2}
    assert {kind.name for kind in BAD} <= set(run.outcomes.counts)
    assert run.samples and all(s.megabytes > 20 and s.descriptors > 5 and s.threads > 0 for s in run.samples)
    printed = capsys.readouterr().out
    assert "half a JPEG" in printed and "descriptors without clients" in printed
