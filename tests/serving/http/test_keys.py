"""Wrong API keys, counted by address on a clock that the test moves."""

import pytest

from serving.http.keys import FREE_KEYS, MOST_ADDRESSES, SECONDS_A_KEY, WrongKeys, address_of
from tests.waiting import GivenClock


def test_some_wrong_keys_are_free_and_the_next_has_to_wait() -> None:
    wrong_keys = WrongKeys(GivenClock())
    assert [wrong_keys.note("a") for _ in range(FREE_KEYS)] == [0] * FREE_KEYS
    assert wrong_keys.note("a") == SECONDS_A_KEY
    assert wrong_keys.note("b") == 0


def test_who_waits_as_told_may_send_another_and_who_does_not_wait_longer_is_not_punished() -> None:
    clock = GivenClock()
    wrong_keys = WrongKeys(clock)
    for _ in range(1000):
        wait = wrong_keys.note("a")
    assert wait == SECONDS_A_KEY
    clock.advance(SECONDS_A_KEY - 1)
    assert wrong_keys.note("a") == 1
    clock.advance(1)
    assert wrong_keys.note("a") == 0
    assert wrong_keys.note("a") == SECONDS_A_KEY


def test_after_a_quiet_time_all_is_as_at_first() -> None:
    clock = GivenClock()
    wrong_keys = WrongKeys(clock)
    for _ in range(100):
        wrong_keys.note("a")
    clock.advance(FREE_KEYS * SECONDS_A_KEY)
    assert [wrong_keys.note("a") for _ in range(FREE_KEYS)] == [0] * FREE_KEYS


def test_of_too_many_addresses_the_quietest_is_forgotten() -> None:
    wrong_keys = WrongKeys(GivenClock())
    for _ in range(FREE_KEYS + 1):
        wrong_keys.note("busy")
    wrong_keys.note("quiet")
    for index in range(MOST_ADDRESSES - 1):
        wrong_keys.note(str(index))
        wrong_keys.note("busy")
    assert len(wrong_keys._free_again) == MOST_ADDRESSES
    assert "quiet" not in wrong_keys._free_again
    assert wrong_keys.note("busy") > 0


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("\x1b[2Ja\nforged line", 1), "an unknown address"),  # what a proxy on this machine may pass on
        (None, "an unknown address"),
    ],
)
def test_an_address_is_one_customers_and_safe_to_print(client: tuple[str, int] | None, expected: str) -> None:
    assert address_of(client) == expected
