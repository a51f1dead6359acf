"""Reading an archive while its run goes on: segments as they are closed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mpirl.archive.reader import Segment, segments
from mpirl.trajectory import Trajectory

COMPLETED = "COMPLETED"  # the file in the run's folder that says that the run is over


def follow(
    directory: str | Path,
    timeout: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    poll: float = 0.5,
) -> Iterator[tuple[int, int, Trajectory]]:
    """Every iteration of an archive, as `read_archive` gives them, and those to come; see `follow_segments`."""
    for path in follow_segments(directory, timeout, stop, poll):
        with Segment(path) as segment:
            for index, (iteration, version) in enumerate(zip(segment.iterations, segment.learner_versions)):
                yield int(iteration), int(version), segment.trajectory(index)


def follow_segments(
    directory: str | Path,
    timeout: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    poll: float = 0.5,
) -> Iterator[Path]:
    """The closed segments of an archive, oldest first, and those that are closed from now on.

    Ends when the run has COMPLETED (the file beside the archive's folder), or when `stop` says so, which is asked every
    `poll` seconds. Raises TimeoutError after `timeout` seconds without a new segment (None: never); a folder that is not
    there yet is waited for. After a resume, iterations that are played again come again. Segments that are deleted
    (archive.max_bytes) before they were asked for are left out.
    """
    directory, seen, patience = Path(directory), set(), _Patience(timeout)
    while True:
        is_over = (directory.parent / COMPLETED).exists()  # before the look: what it says is on disk by then
        there = _closed(directory)
        for path, key in there.items():
            if key not in seen and path.exists():
                yield path
                patience.renew()
        seen = set(there.values())
        if is_over or stop():
            return
        patience.check(directory)
        time.sleep(poll)


def _closed(directory: Path) -> dict[Path, tuple[int, int]]:
    """The segments, and what tells one from another that takes its name after a resume."""
    found = {}
    for path in segments(directory) if directory.is_dir() else ():
        try:
            status = path.stat()
        except FileNotFoundError:  # deleted just now
            continue
        found[path] = status.st_ino, status.st_mtime_ns
    return found


class _Patience:
    """Raises TimeoutError when it has not been renewed for `seconds`."""

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()

    def check(self, directory: Path) -> None:
        if self._seconds is not None and time.monotonic() - self._since >= self._seconds:
            raise TimeoutError(f"no new segment in {directory} for {self._seconds:g} seconds: has its run been killed?")
