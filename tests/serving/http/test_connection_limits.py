"""Which connection goes when there is no room for another."""

import resource

import pytest
from starlette.testclient import TestClient

from serving.http.connection_limits import Connections, wanted_descriptors
from tests.serving.sample_images import jpeg
from tests.waiting import GivenClock

NO_LIMIT = resource.RLIM_INFINITY


class Held:
    """A connection that notes whether it was dropped."""

    def __init__(self, unsent: bool = False, unread: int = 0) -> None:
        self.unsent = unsent
        self.unread = unread
        self.dropped = False

    def drop(self) -> bool:
        self.dropped = not self.unsent
        return self.dropped

    def unread_bytes(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.dropped = True


def crowd(connections: Connections, count: int) -> list[Held]:
    """So many new connections, all taken in."""
    held = [Held() for _ in range(count)]
    assert all([connections.add(connection) for connection in held])
    return held


def dropped(held: list[Held]) -> list[int]:
    return [index for index, connection in enumerate(held) if connection.dropped]


def test_the_silent_connection_that_came_first_makes_room() -> None:
    connections = Connections(3)
    held = crowd(connections, 5)
    assert dropped(held) == [0, 1]
    assert connections.count == 3


def test_a_connection_with_a_request_stays() -> None:
    connections = Connections(3)
    held = crowd(connections, 2)
    connections.busy(held[0])
    crowd(connections, 10)
    assert dropped(held) == [1]


def test_one_that_was_answered_stays_as_long_as_there_are_some_that_never_asked() -> None:
    connections = Connections(3)
    held = crowd(connections, 3)
    for connection in held[:2]:
        connections.busy(connection)
        connections.idle(connection)
    connections.busy(held[0])
    connections.idle(held[0])  # now the one that waits for less time
    silent = crowd(connections, 2)
    assert (dropped(held), dropped(silent)) == ([2], [0])
    connections.busy(silent[1])
    crowd(connections, 1)
    assert dropped(held) == [1, 2]


def test_when_all_hold_requests_a_new_one_is_refused_and_taken_once_there_is_room() -> None:
    connections = Connections(2)
    held = crowd(connections, 2)
    for connection in held:
        connections.busy(connection)
    assert not connections.add(Held())
    assert (dropped(held), connections.count) == ([], 2)
    connections.remove(held[0])
    crowd(connections, 1)


def test_a_connection_whose_answer_is_not_sent_yet_stays() -> None:
    connections = Connections(2)
    sending, other = Held(unsent=True), Held()
    for connection in (sending, other):
        connections.add(connection)
        connections.busy(connection)
        connections.idle(connection)
    crowd(connections, 1)
    assert (sending.dropped, other.dropped) == (False, True)


def test_removing_one_that_is_not_there_does_nothing() -> None:
    connections = Connections(2)
    connections.remove(Held())
    assert connections.count == 0


def test_where_too_much_is_unread_the_clients_that_read_most_slowly_go_until_it_fits() -> None:
    clock = GivenClock()
    connections = Connections(10, most_unread_bytes=1000, least_bytes_per_second=10, clock=clock)
    early, fast, slow, slower = (Held(unread=300) for _ in range(4))
    connections.begin_unread(early)
    clock.advance(10.0)
    for held in (fast, slow, slower):
        connections.begin_unread(held)
    clock.advance(1.0)
    early.unread, fast.unread, slow.unread, slower.unread = 200, 100, 250, 290  # 9, 200, 50 and 10 a second
    new = Held(unread=500)
    connections.begin_unread(new)
    assert dropped([early, fast, slow, slower, new]) == [0, 3]
    assert connections.has_room()


def test_clients_that_read_fast_stay_and_the_next_requests_have_no_room_until_they_have_read() -> None:
    clock = GivenClock()
    connections = Connections(10, most_unread_bytes=1000, least_bytes_per_second=1, clock=clock)
    first, second = Held(unread=900), Held(unread=900)
    connections.begin_unread(first)
    clock.advance(1.0)
    first.unread = 800
    connections.begin_unread(second)
    assert dropped([first, second]) == []
    assert not connections.has_room()
    second.unread = 100
    assert connections.has_room()


def test_one_that_was_read_no_longer_counts() -> None:
    connections = Connections(10, most_unread_bytes=1000, clock=GivenClock())
    large, next_one = Held(unread=5000), Held(unread=900)
    connections.begin_unread(large)
    connections.end_unread(large)
    connections.begin_unread(next_one)
    assert (dropped([large, next_one]), connections.has_room()) == ([], True)


@pytest.mark.parametrize(
    ("most", "descriptors", "expected"), [(2000, 256, 192), (2000, 20, 10), (2000, 65_536, 2000), (5, 256, 5)]
)
def test_the_limit_leaves_descriptors_for_other_things(most: int, descriptors: int, expected: int) -> None:
    connections = Connections(most)
    connections.fit(descriptors)
    assert connections.most == expected


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (256, 256, 256),
        (1024, 4096, 4096),
        (1024, 1_073_741_816, 65_536),
        (1024, NO_LIMIT, 65_536),
        (100_000, 200_000, 100_000),  # never less than there is
        (NO_LIMIT, NO_LIMIT, 65_536),
    ],
)
def test_as_many_descriptors_are_asked_for_as_the_system_allows_and_are_of_use(
    soft: int, hard: int, expected: int
) -> None:
    assert wanted_descriptors(soft, hard) == expected


def test_a_request_that_there_is_no_room_for_is_503(client: TestClient) -> None:
    connections = client.app.state.api.connections  # type: ignore[attr-defined]
    unread = Held()
    connections.begin_unread(unread)
    unread.unread = 300_000_000
    answer = client.post("/v1/classify", content=jpeg())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"
    assert client.get("/livez").status_code == 200
    connections.end_unread(unread)
    assert client.post("/v1/classify", content=jpeg()).status_code == 200
