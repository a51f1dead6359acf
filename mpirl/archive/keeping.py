"""What an archive keeps: which iterations are written at all, and how many bytes of closed segments stay.

An iteration is kept if its number is a multiple of `every`, and if `min_return_quantile` q is given, also an episode ends in
it whose return is at or above the q-quantile of the last RECENT episodes, those of this iteration included.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment, segments
from mpirl.archive.segment import disk_error, write_whole
from mpirl.errors import UserError
from mpirl.trajectory import is_step

RECENT = 300
LEDGER = "deleted.jsonl"


def check_rules(every: int, min_return_quantile: float | None, max_bytes: int | None) -> None:
    """Raise UserError for rules that cannot be."""
    if every < 1:
        raise UserError(f"archive.every={every}: write 1 for every iteration, or a larger number")
    if min_return_quantile is not None and not 0 <= min_return_quantile <= 1:
        raise UserError(f"archive.min_return_quantile={min_return_quantile}: write a number from 0 to 1, or null")
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"archive.max_bytes={max_bytes}: write a number of bytes, or null for no limit")


class Thinning:
    """Says which iterations are written. every: 1 for all. min_return_quantile: 0 to 1, or None."""

    def __init__(self, every: int = 1, min_return_quantile: float | None = None):
        self._every, self._quantile = every, min_return_quantile
        self._recent: deque[float] = deque(maxlen=RECENT)

    def reason(self, iteration: int, episodes: Sequence[Mapping[str, Any]]) -> str:
        """Why an iteration is not kept, "" if it is. episodes: rows of those that end in it; call it for all, in order."""
        returns = [float(row["return"]) for row in episodes]
        self._recent.extend(returns)
        if iteration % self._every:
            return f"by archive.every={self._every}"
        if self._quantile is not None and not (returns and max(returns) >= np.quantile(self._recent, self._quantile)):
            return f"by archive.min_return_quantile={self._quantile}"
        return ""


class Budget:
    """Deletes the oldest segments while all together are larger than `max_bytes` (None: never); the newest always stays.

    What was deleted stands in the folder's `deleted.jsonl`, a line for each segment: {"segment", "reason", "iterations",
    "steps": true ones in each}.
    """

    def __init__(self, directory: Path, max_bytes: int | None):
        self._directory, self._max_bytes = directory, max_bytes
        lines = read_ledger(directory)
        self._last = _place(lines[-1]) if lines else None
        self.deleted: Mapping[str, int] = _sums(lines)
        """True steps deleted, by reason, those of earlier writers included."""

    def enforce(self) -> None:
        """Call it when a segment has been closed."""
        if self._max_bytes is None:
            return
        paths = segments(self._directory)
        sizes = {path: path.stat().st_size for path in paths}
        total = sum(sizes.values())
        for path in paths[:-1]:
            if total <= self._max_bytes:
                return
            self._delete(path)
            total -= sizes[path]

    def _delete(self, path: Path) -> None:
        with Segment(path) as segment:
            step_type = segment.part("step_type", slice(None), slice(None))
            assert step_type is not None, "every archive has step types"
            steps = [int(np.count_nonzero(is_step(of_one))) for of_one in step_type]
            iterations = segment.iterations.tolist()
        reason = f"by archive.max_bytes={self._max_bytes}"
        line = {"segment": path.name, "reason": reason, "iterations": iterations, "steps": steps}
        if _place(line) != self._last:  # it is the last one if a process was killed before the file was gone
            _append(self._directory / LEDGER, line)
            self.deleted = _sums([line], self.deleted)
            self._last = _place(line)
        path.unlink()


def read_ledger(directory: Path) -> list[dict[str, Any]]:
    """What was deleted on purpose, oldest first."""
    path = directory / LEDGER
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def forget_later(directory: Path, iteration: int) -> None:
    """Take iterations later than `iteration` out of the ledger: a resumed run plays them again."""
    lines = read_ledger(directory)
    kept = [_up_to(line, iteration) for line in lines]
    if kept != lines:
        text = "".join(json.dumps(line) + "\n" for line in kept if line["iterations"])
        write_whole(directory / LEDGER, text.encode())


def _append(path: Path, line: Mapping[str, Any]) -> None:
    text = json.dumps(line) + "\n"
    try:
        with open(path, "a") as file:
            file.write(text)
    except OSError as error:
        raise disk_error(str(path), path, len(text), error) from error


def _up_to(line: Mapping[str, Any], iteration: int) -> dict[str, Any]:
    count = sum(number <= iteration for number in line["iterations"])
    return {**line, "iterations": line["iterations"][:count], "steps": line["steps"][:count]}


def _place(line: Mapping[str, Any]) -> tuple[str, list[int]]:
    return line["segment"], line["iterations"]


def _sums(lines: Sequence[Mapping[str, Any]], before: Mapping[str, int] | None = None) -> dict[str, int]:
    sums = dict(before or {})
    for line in lines:
        sums[line["reason"]] = sums.get(line["reason"], 0) + sum(line["steps"])
    return sums
