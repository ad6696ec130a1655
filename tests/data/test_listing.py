from pathlib import Path

import pytest

from convmae_deploy.data.listing import listing

SAMPLES = [("a/1.jpg", 0), ("b/2.jpg", 1)]


def of(root: str, train: list[tuple[str, int]], val: list[tuple[str, int]]) -> str:
    return listing(Path(root), *([(Path(root) / file, label) for file, label in split] for split in (train, val)))


def test_the_same_files_wherever_they_lie() -> None:
    assert of("/data", SAMPLES, [("c.jpg", 0)]) == of("elsewhere/data", SAMPLES, [("c.jpg", 0)])


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ([("a/1.jpg", 0), ("b/3.jpg", 1)], []),
        ([("a/1.jpg", 0), ("b/2.jpg", 0)], []),
        ([("b/2.jpg", 1), ("a/1.jpg", 0)], []),
        ([("a/1.jpg", 0)], [("b/2.jpg", 1)]),
    ],
    ids=["another name", "another label", "another order", "another split"],
)
def test_other_files(train: list[tuple[str, int]], val: list[tuple[str, int]]) -> None:
    assert of("/data", train, val) != of("/data", SAMPLES, [])
