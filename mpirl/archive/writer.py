"""The archive writer: batches are staged, and one thread compresses them into segments beside the training."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple

import numpy as np

from mpirl.archive.base import ArchiveWriter
from mpirl.archive.folder import last_iteration, next_number, prepare
from mpirl.archive.format import check_names, episode_row, filters, players, stored_table
from mpirl.archive.journal import Journal, journal_of
from mpirl.archive.keeping import Budget, Thinning, check_rules
from mpirl.archive.segment import OpenSegment, write_whole
from mpirl.errors import UserError
from mpirl.trajectory import Layout, Trajectory, is_step

POLL = 0.2  # seconds between the idle thread's looks at the clock


class Staged(NamedTuple):
    """A batch that the writer has taken, and what is written with it. fields: those that are stored."""

    iteration: int
    version: int
    fields: dict[str, np.ndarray]
    rows: list[Mapping[str, Any]]
    num_steps: int


class SegmentWriter(ArchiveWriter):
    """Writes `directory`/NNNNNN.h5, numbered on from the segments that are there.

    header: plain values that describe the run, kept in every segment; `lane_rank`, `lane_host` and `rank_emulator` in it
    say who plays each lane. compression: "gzip", "zstd" (needs mpirl[zstd]) or "none". A segment is closed when it holds
    `segment_iterations` iterations (None: any number) or `segment_bytes` compressed bytes, or is `segment_seconds` old;
    until then its journal holds it (see `journal`). content: "all", or "actions" for what replay needs and no
    observations. every, min_return_quantile, max_bytes: see `keeping`. Up to `queue` batches wait for the thread; then
    `write` blocks. A failure to write is raised by every later write and flush.
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
        content: str = "all",
        every: int = 1,
        min_return_quantile: float | None = None,
        max_bytes: int | None = None,
        queue: int = 0,
    ):
        check_names(layout)
        filters(compression, level)  # raises for what does not exist
        check_rules(every, min_return_quantile, max_bytes)
        self._directory, self._layout, self._header = Path(directory), layout, json.dumps(dict(header))
        self._players = players(header)
        self._compression, self._level = compression, level
        self._content, self._fields = content, tuple(stored_table(layout, content))
        self._most_iterations, self._most_bytes, self._most_seconds = segment_iterations, segment_bytes, segment_seconds
        self._keeping = json.dumps({"every": every, "min_return_quantile": min_return_quantile, "max_bytes": max_bytes})
        self._thinning = Thinning(every, min_return_quantile)
        self._number = prepare(self._directory)
        self._budget = Budget(self._directory, max_bytes)

        self._segment: OpenSegment | None = None
        self._journal: Journal | None = None
        self._is_child = False  # forked, and alone
        self._segment_due = 0.0
        self._steps = self._closed_steps = self._segment_steps = 0
        self._failure: BaseException | None = None
        self._failure_is_told = False

        self._is_held = False
        self._jobs: Queue[Callable[[], None] | None] = Queue()
        self._staged: deque[Staged] = deque()  # batches that are not in a segment yet; the first may be on its way
        self._staging: Queue[dict[str, np.ndarray]] = Queue()
        for _ in range(queue + 1):  # one more is being compressed
            self._staging.put({})
        # No daemon: Python hangs at its end if a thread dies inside h5py. It watches for the end of the program instead.
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="archive", daemon=False)
        self._thread.start()

    def write(self, iteration: int, version: int, batch: Trajectory, episodes: list[Mapping[str, Any]]) -> str:
        assert self._thread is not None, "the archive is closed"
        self._raise_failure()
        if reason := self._thinning.reason(iteration, episodes):
            return reason
        rows = [episode_row(row, self._players.get(row["lane"])) for row in episodes]
        staging = self._staging.get() or {name: np.empty_like(batch[name]) for name in self._fields}
        num_lanes = len(staging["step_type"])
        assert batch.num_lanes == num_lanes, f"a batch of {batch.num_lanes} lanes after one of {num_lanes}"
        for name, array in staging.items():
            np.copyto(array, batch[name])
        num_steps = int(is_step(batch["step_type"]).sum())
        self._staged.append(Staged(iteration, version, staging, rows, num_steps))
        self._jobs.put(self._append_next)
        self._steps += num_steps
        return ""

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
    def deleted(self) -> Mapping[str, int]:
        return self._budget.deleted

    @property
    def closed_steps(self) -> int:
        """True steps in closed segments, also after a failure."""
        return self._closed_steps

    @contextmanager
    def held(self) -> Iterator[None]:
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def finish_after_fork(self) -> None:
        self._is_child = True
        self._journal = None  # its descriptor is the other process's
        self._staging = Queue()  # whatever has a lock may be locked for good by a thread that is not here
        self._number = next_number(self._directory)
        if self._segment is not None and self._segment.path.exists():  # closed by the other process after the fork
            journal_of(self._segment.path).unlink(missing_ok=True)
            self._segment = None
        last = last_iteration(self._directory)
        while self._staged:
            if self._staged[0].iteration <= last:
                self._staged.popleft()
            else:
                self._append_next()
        self._close_segment()
        self._raise_failure()

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
            self._close_journal()

    def _give_way(self) -> None:
        while self._is_held:
            time.sleep(0.001)

    def _append_next(self) -> None:
        iteration, version, fields, rows, num_steps = self._staged[0]
        try:
            if self._failure is not None:
                return
            segment = self._segment = self._segment or self._open_segment(len(fields["step_type"]))
            if iteration not in segment.iterations[-1:]:  # it is in where a fork came just before it left `_staged`
                record = segment.append(iteration, version, fields, rows, self._give_way)
                if self._journal:
                    self._journal.append(record)
            self._segment_steps += num_steps
        finally:
            self._staged.popleft()  # only now, so that a forked child finds it
            self._staging.put(fields)
        is_long = self._most_iterations is not None and len(segment.iterations) >= self._most_iterations
        if is_long or segment.nbytes >= self._most_bytes or time.monotonic() >= self._segment_due:
            self._close_segment()

    def _open_segment(self, num_lanes: int) -> OpenSegment:
        self._segment_due = time.monotonic() + self._most_seconds
        path = self._directory / f"{self._number:06d}.h5"
        settings = (self._compression, self._level, self._content, self._keeping)
        segment = OpenSegment(path, self._layout, num_lanes, self._header, *settings)
        if not self._is_child:
            self._journal = Journal(path, segment.snapshot())
        return segment

    def _close_segment(self) -> None:
        segment = self._segment
        if segment is None:
            return
        write_whole(segment.path, segment.image())
        journal_of(segment.path).unlink(missing_ok=True)
        self._segment = None  # only now, so that a forked child finds it
        self._close_journal()
        segment.close()
        self._number += 1
        self._closed_steps += self._segment_steps
        self._segment_steps = 0
        self._budget.enforce()

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal:
            journal.close()
