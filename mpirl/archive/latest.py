"""The latest iterations of an archive, to fill a replay buffer with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mpirl.archive.reader import Segment, segments
from mpirl.trajectory import Layout, Trajectory


def latest(directory: str | Path, size: int, layout: Layout) -> Iterator[tuple[int, Trajectory]]:
    """(iteration, batch), oldest first, one more than hold the last `size` observations; fewer if there are no more.

    Only iterations of the layout's specs whose observations are archived, with frames of context for the layout's stacks.
    Closed segments only. An archive that is not there holds none.
    """
    chosen: list[tuple[Path, int]] = []  # newest segment first, and its first iteration that is needed
    for path in reversed(segments(directory) if Path(directory).is_dir() else []):
        with Segment(path) as segment:
            step_type = segment.part("step_type", 0, slice(None))
            assert step_type is not None, "every archive has step types"
            per_iteration = len(step_type) * segment.layout.steps
            needed = min(-(-size // per_iteration) + 1, len(segment.iterations))
            if needed < 1 or not _suits(segment, layout):
                break
            chosen.append((path, len(segment.iterations) - needed))
            size -= needed * per_iteration
    for path, first in reversed(chosen):
        with Segment(path) as segment:
            for index in range(first, len(segment.iterations)):
                yield int(segment.iterations[index]), segment.trajectory(index)


def _suits(segment: Segment, layout: Layout) -> bool:
    holds = all(segment.part(name, slice(0, 0), slice(None)) is not None for name in layout.specs.observation)
    return holds and segment.layout.specs == layout.specs and segment.layout.context >= layout.context
