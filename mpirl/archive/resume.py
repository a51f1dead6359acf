"""Takes iterations back from an archive: a run that goes on from a checkpoint plays later ones again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mpirl.archive.journal import recover
from mpirl.archive.keeping import forget_later
from mpirl.archive.reader import Segment, segments
from mpirl.archive.segment import OpenSegment, write_whole
from mpirl.files import sync_folder


def resume_at(directory: str | Path, iteration: int) -> int:
    """Move the segments of iterations later than `iteration` to `directory`/discarded-<n>; return the iterations moved.

    Of a segment that holds earlier ones as well, a copy of these stays. What a killed process had not closed yet is
    recovered first.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return 0
    recover(directory)
    forget_later(directory, iteration)
    later: dict[Path, tuple[int, int]] = {}  # iterations up to `iteration`, and later ones
    for path in segments(directory):
        with Segment(path) as segment:
            num_later = int((segment.iterations > iteration).sum())
            if num_later:
                later[path] = len(segment.iterations) - num_later, num_later
    if later:
        _discard(directory, {path: num_kept for path, (num_kept, _) in later.items()})
    return sum(num_later for _, num_later in later.values())


def _discard(directory: Path, num_kept: dict[Path, int]) -> None:
    """Put segments aside, oldest first given, but for the first so many iterations of each."""
    number = 1
    while (target := directory / f"discarded-{number}").exists():
        number += 1
    target.mkdir()
    for path in reversed(num_kept):  # newest first: interrupted, it leaves no gap
        if num_kept[path]:
            write_whole(target / path.name, path.read_bytes())
            write_whole(path, _beginning(path, num_kept[path]))
        else:
            os.replace(path, target / path.name)
    sync_folder(target)
    sync_folder(directory)


def _beginning(path: Path, num_iterations: int) -> bytes:
    """A segment of the first iterations of the one at `path`."""
    with Segment(path) as segment:
        num_lanes, header = segment.num_lanes, json.dumps(segment.header)
        settings = {"level": 1, "content": segment.content, "keeping": json.dumps(segment.keeping)}
        short = OpenSegment(path, segment.layout, num_lanes, header, segment.compression, **settings)
        for index in range(num_iterations):
            iteration, version = int(segment.iterations[index]), int(segment.learner_versions[index])
            rows = [row for row in segment.episodes() if row["end_iteration"] == iteration]
            short.append(iteration, version, {name: segment.part(name, index, slice(None)) for name in segment.fields}, rows)
    content = short.image()
    short.close()
    return content
