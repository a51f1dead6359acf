"""A gather that goes on in a thread of rank 0 while its main thread computes.

MPI moves large messages only while somebody calls it, and an update of the learner does not. The main thread leaves the group
alone meanwhile: one thread at a time is what MPI_THREAD_SERIALIZED allows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mpirl.transport.base import Arrays, Group, Stopwatch


@contextmanager
def gathering(
    group: Group, part: Arrays | None, whole: Arrays | None, lanes: Sequence[int], beside: bool = False
) -> Iterator[None]:
    """See Group.gathering."""
    if not beside or group.rank:
        yield
        group.gather(part, whole, lanes)
        return
    failures: list[BaseException] = []

    def work() -> None:
        try:
            group.gather(part, whole, lanes)
        except BaseException as failure:  # raised in the main thread
            failures.append(failure)

    stopwatch, group.stopwatch = group.stopwatch, Stopwatch()  # the main thread's laps are its own
    thread = threading.Thread(target=work, name="gather", daemon=True)
    thread.start()
    try:
        yield
        thread.join()
    except BaseException:
        group.interrupt()
        thread.join()
        raise
    finally:
        group.stopwatch = stopwatch
    if failures:
        raise failures[0]
    stopwatch.lap("collect")
