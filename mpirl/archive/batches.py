"""Batches streamed from archives that may be larger than memory: one thread reads and decompresses ahead."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from queue import Full, Queue
from typing import Any, NamedTuple

import numpy as np

from mpirl import seeds
from mpirl.archive.reader import Segment
from mpirl.archive.shuffle import Load, Take, shuffled
from mpirl.archive.windows import Use, Windows, read_windows
from mpirl.specs import StepType
from mpirl.trajectory import Layout, Trajectory

OPEN_SEGMENTS = 8
POLL = 0.2  # seconds between looks at whether the stream is still wanted


class StreamedBatch(NamedTuple):
    """A batch, and where it stands: the epoch, from 0, and its number in there."""

    epoch: int
    number: int
    arrays: dict[str, np.ndarray]


class Batches:
    """Epoch after epoch of an archive's windows in shuffled order, as batches of `lanes` windows; a function of the seed.

    Every window comes once in an epoch. `buffer` windows wait in memory to be shuffled; with one batch being made, one
    waiting and the one taken, this is all the memory there is. In an epoch's last batch, lanes that are left over have no
    steps. epoch, number: the batch to begin with.
    """

    def __init__(self, windows: Windows, layout: Layout, lanes: int, buffer: int, seed: int, epoch: int = 0, number: int = 0):
        self._windows, self._layout, self._seed = windows, layout, seed
        self._counts = [len(unit.lane) for unit in windows.units]
        self.lanes = min(lanes, windows.count)
        self.slots = Trajectory.allocate(layout, max(buffer, self.lanes + max(self._counts)))
        self._queue: Queue[StreamedBatch | BaseException] = Queue(1)
        self._unwanted = threading.Event()
        # No daemon: Python hangs at its end if a thread dies inside h5py.
        self._thread = threading.Thread(target=self._run, args=(epoch, number), name="archive reader")
        self._thread.start()

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self._windows.count / self.lanes)

    def take(self) -> StreamedBatch:
        """The next batch; raises what the reading thread met."""
        found = self._queue.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """Stop reading. Safe to call twice."""
        self._unwanted.set()
        self._thread.join()

    # From here on: the thread.

    def _run(self, epoch: int, number: int) -> None:
        try:
            with OpenSegments() as opened:
                while not self._unwanted.is_set():
                    for batch in self._epoch(opened, epoch, number):
                        if not self._put(batch):
                            return
                    epoch, number = epoch + 1, 0
        except BaseException as error:  # for `take`
            self._put(error)

    def _put(self, item: StreamedBatch | BaseException) -> bool:
        """Hand on; False if nobody wants it any more."""
        while not self._unwanted.is_set() and threading.main_thread().is_alive():
            try:
                self._queue.put(item, timeout=POLL)
                return True
            except Full:
                continue
        return False

    def _epoch(self, opened: OpenSegments, epoch: int, first: int) -> Iterator[StreamedBatch]:
        """The batches of an epoch from number `first` on; of those before, nothing is read."""
        random = seeds.generator(self._seed, seeds.LEARNING, epoch, 1)  # the algorithm's have no second key
        skipped: dict[int, tuple[int, int]] = {}  # slot: the unit and which of its windows should be in it
        number = 0
        for event in shuffled(self._counts, self.slots.num_lanes, self.lanes, random):
            if self._unwanted.is_set():
                return
            if number < first:
                number += _pretend(event, skipped)
                continue
            if skipped:
                self._catch_up(opened, skipped)
            if isinstance(event, Load):
                self._load(opened, event.unit, range(len(event.slots)), event.slots)
                continue
            yield StreamedBatch(epoch, number, self._take_out(event.slots))
            number += 1

    def _catch_up(self, opened: OpenSegments, skipped: dict[int, tuple[int, int]]) -> None:
        """Read what would be in the buffer by now."""
        for unit in sorted({unit for unit, _ in skipped.values()}):
            pairs = sorted((which, slot) for slot, (of_unit, which) in skipped.items() if of_unit == unit)
            self._load(opened, unit, [which for which, _ in pairs], [slot for _, slot in pairs])
        skipped.clear()

    def _load(self, opened: OpenSegments, number: int, pick: Any, slots: list[int]) -> None:
        unit = self._windows.units[number]
        found = read_windows(opened.get(unit.part.path), self._windows, unit, list(pick), self._layout)
        for slot, window in zip(slots, found):
            for name, array in window.items():
                self.slots[name][slot] = array

    def _take_out(self, slots: list[int]) -> dict[str, np.ndarray]:
        missing = self.lanes - len(slots)
        arrays = {name: array[slots + slots[:1] * missing] for name, array in self.slots.items()}
        if missing:
            arrays["step_type"][-missing:], arrays["use"][-missing:] = StepType.LAST, Use.SEAM
        return arrays


def _pretend(event: Load | Take, skipped: dict[int, tuple[int, int]]) -> int:
    """Note what an event would have done to the buffer; the batches it would have made."""
    if isinstance(event, Load):
        skipped.update({slot: (event.unit, which) for which, slot in enumerate(event.slots)})
        return 0
    for slot in event.slots:
        del skipped[slot]
    return 1


class OpenSegments(ExitStack):
    """The segments used last, kept open; a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._open: OrderedDict[Any, Segment] = OrderedDict()
        self.callback(lambda: [segment.close() for segment in self._open.values()])

    def get(self, path: Any) -> Segment:
        segment = self._open.pop(path, None) or Segment(path)
        self._open[path] = segment
        if len(self._open) > OPEN_SEGMENTS:
            self._open.popitem(last=False)[1].close()
        return segment
