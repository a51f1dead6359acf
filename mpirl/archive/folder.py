"""The folder of an archive, as a writer finds it."""

from __future__ import annotations

from pathlib import Path

from mpirl.archive.journal import recover
from mpirl.archive.reader import Segment, segments


def prepare(directory: Path) -> int:
    """Make the folder, mend what a killed writer left behind, return the number of the next segment."""
    directory.mkdir(parents=True, exist_ok=True)
    for part in directory.glob("*.part"):
        part.unlink()
    recover(directory)
    return next_number(directory)


def next_number(directory: Path) -> int:
    existing = segments(directory)
    return int(existing[-1].stem) + 1 if existing else 0


def last_iteration(directory: Path) -> int:
    """The latest iteration that is on disk, -1 if there is none."""
    for path in reversed(segments(directory)):
        with Segment(path) as segment:
            return int(segment.iterations[-1])
    return -1
