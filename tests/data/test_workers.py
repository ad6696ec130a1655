"""What becomes of a decoding process that cannot go on."""

from typing import Any

import pytest
from torch.utils.data import DataLoader, _utils

from convmae_deploy.data.workers import NO_OPEN_FILES, NO_SHARED_MEMORY, leave_signals_to_parent


def not_handed_over(reason: str) -> Any:
    """What makes a batch that no process can hand to another."""

    class Batch:
        def __reduce__(self) -> Any:
            raise RuntimeError(reason)

    return lambda samples: Batch()


@pytest.mark.parametrize(
    ("reason", "status"),
    [("unable to allocate shared memory(shm)", NO_SHARED_MEMORY), ("Too many open files", NO_OPEN_FILES)],
)
def test_a_batch_that_cannot_be_handed_over_ends_its_process_in_place_of_a_wait_for_ever(
    reason: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # it may end before its parent listens for that
    loader: DataLoader[Any] = DataLoader(
        range(4),  # type: ignore[arg-type]
        2,
        num_workers=1,
        collate_fn=not_handed_over(reason),
        worker_init_fn=leave_signals_to_parent,
    )
    iterator: Any = iter(loader)
    (process,) = iterator._workers
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(iterator)
    process.join()
    assert process.exitcode == status
