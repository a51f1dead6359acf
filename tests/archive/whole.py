"""The finished episodes of an archive, step by step: slow, and by nothing but the format's description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment, read_archive, segments


def episodes_of(archive: Path) -> dict[int, dict[str, Any]]:
    """{id: its row of the episode table, and its fields under their names}; those with all steps only."""
    rows, parts = {}, {}
    for path in segments(archive):
        with Segment(path) as segment:
            rows.update((row["id"], row) for row in segment.episodes())
    for _, _, batch in read_archive(archive):
        layout = batch.layout
        by_observation = {**layout.specs.observation, **layout.specs.extras, **layout.extras}
        for lane, t in zip(*np.nonzero(batch["step_type"][:, :-1] != 2)):
            part = parts.setdefault(int(batch["episode"][lane, t]), {})
            for name in ("action", "reward", "discount", "log_prob"):
                part.setdefault(name, []).append(batch[name][lane, t])
            for name in by_observation:
                place = t + (layout.context if name in layout.specs.observation else 0)
                # Of the two places of an observation between iterations, the one where the action was chosen counts.
                part[name] = [*part.get(name, [])[:-1], batch[name][lane, place], batch[name][lane, place + 1]]
    whole = {id: part for id, part in sorted(parts.items()) if id in rows and len(part["reward"]) == rows[id]["length"]}
    return {id: rows[id] | {name: np.stack(values) for name, values in part.items()} for id, part in whole.items()}


def assert_equal(found: Any, expected: Any) -> None:
    """The same bits in the same dtype and shape."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
