"""The archive writer: batches are staged, and one thread compresses them into segments beside the training."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np

from mpirl.archive.base import ArchiveWriter
from mpirl.archive.format import OWN_NAMES, episode_row, filters
from mpirl.archive.reader import Segment, segments
from mpirl.archive.segment import OpenSegment, sync_folder, write_whole
from mpirl.errors import UserError
from mpirl.trajectory import Layout, Trajectory, is_step

POLL = 0.2  # seconds between the idle thread's looks at the clock


class SegmentWriter(ArchiveWriter):
    """Writes `directory`/NNNNNN.h5, numbered on from the segments that are there.

    header: plain values that describe the run, kept in every segment; `lane_host` in it names the host of each lane.
    compression: "gzip", "zstd" (needs mpirl[zstd]) or "none". A segment is closed when it holds `segment_iterations`
    iterations (None: any number) or `segment_bytes` compressed bytes, or is `segment_seconds` old. Up to `queue`
    batches wait for the thread; then `write` blocks. A failure to write is raised by every later write and flush.
    """

    def __init__(
        self,
        directory: str | Path,
        layout: Layout,
        header: Mapping[str, Any],
        compression: str = "gzip",
        level: int = 1,
        segment_iterations: int | None = None,
        segment_bytes: int = 64 << 20,
        segment_seconds: float = 60.0,
        queue: int = 2,
    ):
        _check_names(layout)
        filters(compression, level)  # raises for what does not exist
        self._directory, self._layout, self._header = Path(directory), layout, json.dumps(dict(header))
        self._lane_host = list(header.get("lane_host", ()))
        self._compression, self._level = compression, level
        self._most_iterations, self._most_bytes, self._most_seconds = segment_iterations, segment_bytes, segment_seconds
        self._number = _prepare(self._directory)

        self._segment: OpenSegment | None = None
        self._segment_due = 0.0
        self._steps = self._closed_steps = self._segment_steps = 0
        self._failure: BaseException | None = None
        self._failure_is_told = False

        self._jobs: Queue[Callable[[], None] | None] = Queue()
        self._staging: Queue[Trajectory | None] = Queue()
        for _ in range(queue + 1):  # one more is being compressed
            self._staging.put(None)
        # No daemon: Python hangs at its end if a thread dies inside h5py. It watches for the end of the program instead.
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="archive", daemon=False)
        self._thread.start()

    def write(self, iteration: int, version: int, batch: Trajectory, episodes: list[Mapping[str, Any]]) -> None:
        assert self._thread is not None, "the archive is closed"
        self._raise_failure()
        rows = [episode_row(row, self._host(row["lane"])) for row in episodes]
        staging = self._staging.get() or Trajectory.allocate(self._layout, batch.num_lanes, np.empty)
        assert batch.num_lanes == staging.num_lanes, f"a batch of {batch.num_lanes} lanes after one of {staging.num_lanes}"
        for name, array in batch.items():
            np.copyto(staging[name], array)
        num_steps = int(is_step(batch["step_type"]).sum())
        self._jobs.put(partial(self._append, iteration, version, staging, rows, num_steps))
        self._steps += num_steps

    def flush(self) -> int:
        self._jobs.put(self._close_segment)
        self._jobs.join()
        self._raise_failure()
        return self._closed_steps

    def close(self) -> None:
        if self._thread is None:
            return
        self._jobs.put(self._close_segment)
        self._jobs.put(None)
        self._thread.join()
        self._thread = None
        self._raise_unheard()

    @property
    def steps(self) -> int:
        return self._steps

    @property
    def closed_steps(self) -> int:
        """True steps in closed segments, also after a failure."""
        return self._closed_steps

    def _host(self, lane: int) -> str:
        return self._lane_host[lane] if lane < len(self._lane_host) else ""

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        self._failure_is_told = True
        if isinstance(self._failure, UserError):
            raise UserError(str(self._failure)) from self._failure
        raise RuntimeError("the thread that writes the archive failed") from self._failure

    def _raise_unheard(self) -> None:
        if not self._failure_is_told:
            self._raise_failure()

    # From here on: the thread.

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=POLL)
            except Empty:
                if not threading.main_thread().is_alive():  # the program ended without close()
                    self._attempt(self._close_segment)
                    self._raise_unheard()
                    return
                if time.monotonic() >= self._segment_due:
                    self._attempt(self._close_segment)
                continue
            if job is not None:
                self._attempt(job)
            self._jobs.task_done()
            if job is None:
                return

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as failure:  # raised again by the next call of write, flush or close
            self._failure = self._failure or failure
            self._segment = None

    def _append(self, iteration: int, version: int, staging: Trajectory, rows: list[Mapping[str, Any]], num_steps: int) -> None:
        try:
            if self._failure is not None:
                return
            segment = self._segment = self._segment or self._open_segment(staging.num_lanes)
            segment.append(iteration, version, staging, rows)
            self._segment_steps += num_steps
        finally:
            self._staging.put(staging)
        is_long = self._most_iterations is not None and len(segment.iterations) >= self._most_iterations
        if is_long or segment.nbytes >= self._most_bytes or time.monotonic() >= self._segment_due:
            self._close_segment()

    def _open_segment(self, num_lanes: int) -> OpenSegment:
        self._segment_due = time.monotonic() + self._most_seconds
        path = self._directory / f"{self._number:06d}.h5"
        return OpenSegment(path, self._layout, num_lanes, self._header, self._compression, self._level)

    def _close_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        write_whole(segment.path, segment.finish())
        self._number += 1
        self._closed_steps += self._segment_steps
        self._segment_steps = 0


def resume_at(directory: str | Path, iteration: int) -> int:
    """Move the segments of iterations later than `iteration` to `directory`/discarded-<n>; return the iterations moved."""
    directory = Path(directory)
    if not directory.is_dir():
        return 0
    later: list[tuple[Path, int]] = []
    for path in segments(directory):
        with Segment(path) as segment:
            num_later = int((segment.iterations > iteration).sum())
            if 0 < num_later < len(segment.iterations):
                first, last = segment.iterations[[0, -1]]
                raise UserError(
                    f"cannot resume after iteration {iteration}: {path} holds iterations {first} to {last} in one piece. "
                    f"Resume from a checkpoint before iteration {first} or at {last}, or move that file away"
                )
        if num_later:
            later.append((path, num_later))
    _discard(directory, [path for path, _ in later])
    return sum(num_later for _, num_later in later)


def _discard(directory: Path, paths: list[Path]) -> None:
    if not paths:
        return
    number = 1
    while (target := directory / f"discarded-{number}").exists():
        number += 1
    target.mkdir()
    for path in reversed(paths):  # newest first: interrupted, it leaves no gap
        os.replace(path, target / path.name)
    sync_folder(target)
    sync_folder(directory)


def _prepare(directory: Path) -> int:
    """Make the folder, remove what a killed writer left half-written, return the number of the next segment."""
    directory.mkdir(parents=True, exist_ok=True)
    for part in directory.glob("*.h5.part"):
        part.unlink()
    existing = segments(directory)
    return int(existing[-1].stem) + 1 if existing else 0


def _check_names(layout: Layout) -> None:
    for name in layout.table():
        if name in OWN_NAMES:
            raise UserError(f"the archive has its own {name!r}: rename that extra of the emulator or algorithm")
