"""Which samples of which shards an update gets."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from convmae_deploy.data.determinism import StepSampler
from convmae_deploy.data.shard_sampler import ShardPhoto, ShardSampler
from convmae_deploy.data.shards import Shard, Shards, read_shard
from convmae_deploy.errors import ConvMAEError
from tests.data.tar_shards import make_shards, write_shard


def sampler(
    names: Sequence[Path],
    samples: int,
    *,
    batch_size: int = 4,
    micro_batch_size: int = 2,
    rank: int = 0,
    world_size: int = 1,
    shuffle_buffer: int = 3,
) -> tuple[ShardSampler, StepSampler]:
    steps = StepSampler(
        samples,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=5,
        rank=rank,
        world_size=world_size,
    )
    return ShardSampler(Shards(names), steps, shuffle_buffer=shuffle_buffer), steps


def draw(pair: tuple[ShardSampler, StepSampler], epoch: int = 0, first_step: int = 0) -> list[list[ShardPhoto]]:
    batches, steps = pair
    steps.start(epoch, first_step)
    return list(batches)


def flat(batches: list[list[ShardPhoto]]) -> list[tuple[int, int]]:
    return [(photo.shard, photo.member) for batch in batches for photo in batch]


def test_the_order_is_fixed_by_the_epoch_and_each_sample_comes_once(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [4, 4, 4, 4])
    first, again, other = (flat(draw(sampler(names, 16), epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == [(shard, member) for shard in range(4) for member in range(4)]


def test_a_buffer_of_one_keeps_the_order_within_shards_and_a_larger_one_mixes_shards(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [4, 4, 4, 4])
    plain, mixed = (flat(draw(sampler(names, 16, shuffle_buffer=size))) for size in (1, 8))
    changes = [sum(a[0] != b[0] for a, b in zip(order, order[1:], strict=False)) for order in (plain, mixed)]
    assert changes[0] == 3 < changes[1]
    assert [member for _, member in plain] == [0, 1, 2, 3] * 4


def test_processes_read_different_shards_and_together_all(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [4, 4, 4, 4])
    shares = [flat(draw(sampler(names, 16, rank=rank, world_size=2))) for rank in (0, 1)]
    left, right = ({shard for shard, _ in share} for share in shares)
    assert len(left) == len(right) == 2 and not left & right
    assert sorted(shares[0] + shares[1]) == [(shard, member) for shard in range(4) for member in range(4)]


def test_processes_of_uneven_shards_make_the_same_number_of_updates(tmp_path: Path) -> None:
    photos = [1, 9, 1, 9]
    names = make_shards(tmp_path, photos)
    laps = []
    for epoch in range(6):
        for rank in (0, 1):
            pair = sampler(names, 20, rank=rank, world_size=2)
            batches = draw(pair, epoch)
            assert [len(batch) for batch in batches] == [2] * 5
            own = sum(photos[shard] for shard in pair[0].own_shards(epoch))
            drawn = [photo.lap for batch in batches for photo in batch]
            assert drawn == [place // own for place in range(10)]  # a lap is whole before the next begins
            laps.append(drawn[-1])
    assert min(laps) == 0 and max(laps) == 4  # a process that has two of the ten photos goes five times round


def test_micro_batches_divide_an_update_like_those_of_folders(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [7, 7])
    pair = sampler(names, 14, batch_size=7, micro_batch_size=3)
    assert [len(batch) for batch in draw(pair)] == [3, 2, 2] * 2
    assert [len(batch) for batch in draw(pair, first_step=1)] == [3, 2, 2]


def test_resuming_skips_what_was_begun_and_goes_on_with_the_next_shard(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [4] * 6)
    pair = sampler(names, 24, shuffle_buffer=2)
    own = pair[0].own_shards(0)
    # an update takes 4 samples, and 2 more are in the buffer: after 1 update 6 samples of 2 shards have been read
    assert [pair[0].begun(0, step) for step in range(4)] == [(0, 0), (0, 2), (0, 3), (0, 4)]
    resumed = flat(draw(pair, first_step=1))
    assert len(resumed) == 20
    assert {shard for shard, _ in resumed[:16]} == set(own[2:])
    seen = flat(draw(pair)[:2])
    assert not set(seen) & set(resumed[:16])
    assert resumed == flat(draw(sampler(names, 24, shuffle_buffer=2), first_step=1))


@pytest.mark.parametrize("buffer", [1, 3, 8])
def test_what_counts_as_begun_is_what_the_updates_before_have_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    names = make_shards(tmp_path, [3, 5, 2, 4, 6, 4])
    pair = sampler(names, 24, shuffle_buffer=buffer)
    opened: list[Shard] = []

    def recorded(shard: Shard) -> Iterator[bytes | str]:
        opened.append(shard)
        return read_shard(shard)

    monkeypatch.setattr("convmae_deploy.data.shard_sampler.read_shard", recorded)
    monkeypatch.setattr("convmae_deploy.data.shard_sampler._read_ahead", iter)
    pair[1].start(0)
    batches = iter(pair[0])
    for step in range(1, 6):
        next(batches), next(batches)
        lap, begun = pair[0].begun(0, step)
        assert (begun if lap == 0 else 6) == len(opened)


def test_resuming_after_the_last_shard_begins_a_new_lap(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [4, 4])
    batches = draw(sampler(names, 8, shuffle_buffer=100), first_step=1)
    assert {photo.lap for batch in batches for photo in batch} == {1}


def test_photos_that_are_too_large_to_wait_together_are_given_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make_shards(tmp_path, [4, 4, 4])
    largest = max(len(data) for name in names for data in read_shard(name))
    held, drawn, most = 0, set(), 0

    def recorded(shard: Shard) -> Iterator[bytes | str]:
        nonlocal held
        for data in read_shard(shard):
            held += len(data)
            yield data

    monkeypatch.setattr("convmae_deploy.data.shard_sampler.read_shard", recorded)
    monkeypatch.setattr("convmae_deploy.data.shard_sampler._read_ahead", iter)
    monkeypatch.setattr("convmae_deploy.data.shard_sampler.MAX_HELD_BYTES", 3 * largest)
    pair = sampler(names, 12, batch_size=1, micro_batch_size=1, shuffle_buffer=100)
    pair[1].start(0)
    for (photo,) in pair[0]:
        held -= len(photo.data or b"")
        drawn.add((photo.shard, photo.member))
        most = max(most, held)
    assert len(drawn) == 12 and most <= 3 * largest


def test_a_missing_shard_is_one_unreadable_sample(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [3, 4])
    batches = draw(sampler([*names, tmp_path / "missing.tar"], 8))
    unreadable = [photo for batch in batches for photo in batch if photo.data is None]
    assert [photo.shard for photo in unreadable] == [2]
    assert sum(len(batch) for batch in batches) == 8


def test_shards_without_a_photo_end_the_run_with_one_sentence_instead_of_never(tmp_path: Path) -> None:
    empty = [write_shard(tmp_path / f"{number}.tar", {"0.txt": b""}) for number in range(2)]
    with pytest.raises(ConvMAEError, match="found none that can be read"):
        draw(sampler(empty, 8))
    with pytest.raises(ConvMAEError, match="found none that can be read"):
        draw(sampler(empty, 8), first_step=1)
    with pytest.raises(ConvMAEError, match="found none that can be read"):
        draw(sampler([tmp_path / "missing.tar"], 100))


def test_fewer_shards_than_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="2 processes need at least as many shards; got 1"):
        sampler(make_shards(tmp_path, [4]), 4, world_size=2)
