"""Saves the run when the launcher does not leave the learner the time.

Open MPI's mpirun, when it is interrupted or terminated, sends its ranks TERM and kills them a quarter of a second later.
An update of the learner may take longer. So rank 0 keeps a copy of its state as of the last iteration, and at TERM forks
a child with it, which mpirun knows nothing of. If the run ends in order, the child does nothing. If it is killed, the
child brings to disk what the archive had taken, and a checkpoint.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mpirl import checkpoint
from mpirl.checkpoint import Checkpoints
from mpirl.files import write_json
from mpirl.learner import Learner
from mpirl.observers.base import Observer, Report
from mpirl.rundir import RunDirectory

SHARE = 0.01  # of the time may go into copies of the state
LIFE = 60  # seconds that the child has to save
DONE = b"d"  # the run ended in order
STOPPED = b"\0"  # wakes the thread to end it; no signal has this number


@contextlib.contextmanager
def rearguard(
    learner: Learner | None, checkpoints: Checkpoints | None, directory: RunDirectory, environ: Mapping[str, str]
) -> Iterator[list[Observer]]:
    """While entered, the run is saved also when mpirun kills it; gives the observers that this needs.

    To be left only when everything is on disk, or by an exception.
    """
    if not learner or not checkpoints or not is_needed(environ):
        yield []
        return
    guard = Rearguard(learner, checkpoints, directory)
    guard.enter()
    try:
        yield [guard]
    except BaseException:
        guard.leave(in_order=False)
        raise
    guard.leave(in_order=True)


def is_needed(environ: Mapping[str, str]) -> bool:
    """Whether Open MPI's mpirun started this process (srun and MPICH leave the ranks time), and this thread takes signals."""
    return "OMPI_COMM_WORLD_SIZE" in environ and threading.current_thread() is threading.main_thread()


class Rearguard(Observer):
    """Keeps the copy, and forks at TERM. `enter` and `leave` are for main threads."""

    def __init__(self, learner: Learner, checkpoints: Checkpoints, directory: RunDirectory):
        self._learner, self._checkpoints, self._directory = learner, checkpoints, directory
        self._process = os.getpid()
        self._child: int | None = None
        self._to_child = -1
        self._take_copy()

    def observe(self, report: Report) -> None:
        if time.monotonic() >= self._due:
            self._take_copy()

    def enter(self) -> None:
        """Watch for TERM, which must have a handler (see `schedule.Signals`).

        Python runs handlers between two steps of the main thread, which may be inside torch for long. But at once it writes
        the number of a signal that has one to the wake-up descriptor, and a thread reads that.
        """
        self._wakeup, self._to_thread = os.pipe()
        os.set_blocking(self._to_thread, False)
        self._wakeup_before = signal.set_wakeup_fd(self._to_thread, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="rearguard", daemon=True)
        self._thread.start()

    def leave(self, in_order: bool) -> None:
        """Stop watching. A child that is there is sent away if the run ended in order, else it waits for this process's end."""
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._to_thread, STOPPED)
        self._thread.join()
        os.close(self._wakeup)
        os.close(self._to_thread)
        if self._child is not None and in_order:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._to_child, DONE)
            os.close(self._to_child)
            reap(self._child)

    def _take_copy(self) -> None:
        start = time.thread_time()  # a copy that waited for a core has not cost more
        self._state = copied(self._learner.state_dict())
        self._due = time.monotonic() + (time.thread_time() - start) / SHARE

    def _watch(self) -> None:
        while (number := os.read(self._wakeup, 1)) != STOPPED:
            if number[0] == signal.SIGTERM and self._child is None:
                self._fork()

    def _fork(self) -> None:
        from_parent, self._to_child = os.pipe()
        archive = self._learner.archive
        with archive.held() if archive else contextlib.nullcontext():  # there is a quarter of a second
            self._child = os.fork()
        if self._child:
            os.close(from_parent)
            return
        try:
            lock = self._directory.lock_descriptor
            detach(keep=(from_parent, lock))
            os.write(lock, b"told to stop, and saving\n")
            if os.read(from_parent, 1) != DONE:
                signal.alarm(LIFE)
                wait_for_the_end_of(self._process)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # on NFS, the lock has ended with its process
                self._save()
        finally:
            os._exit(0)  # nothing of Python's, MPI's or CUDA's tidying up

    def _save(self) -> None:
        """In the child: bring everything to disk, and tell in the log and in status.json."""
        failure = ""
        try:
            if self._learner.archive:
                self._learner.archive.finish_after_fork()
            self._save_checkpoint()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            saved = f"INFO killed after SIGTERM; saved iteration {self._state['iteration']}"
            unsaved = f"ERROR killed after SIGTERM, and not saved: {failure}"
            append_line(self._directory.logs / "rank-0000.log", unsaved if failure else saved)
        update_status(self._directory.status, self._state, failure)

    def _save_checkpoint(self) -> None:
        """Unless the run got as far as to save by itself, before it was killed."""
        there = checkpoint.numbered(self._directory.checkpoints)
        if there and int(there[-1].stem) >= self._state["iteration"]:
            self._state = checkpoint.read(there[-1])
        elif self._state["iteration"]:
            self._checkpoints.save_state(self._state)


def copied(value: Any) -> Any:
    """A copy of a state on the CPU that shares nothing with it."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, tuple):
        return tuple(map(copied, value))
    return copy.deepcopy(value)


def detach(keep: tuple[int, ...]) -> None:
    """Make a forked child independent of what the launcher does to its parent; close all descriptors but `keep`."""
    os.setsid()  # the launcher kills the parent's process group
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    gc.disable()  # what it would free may be the GPU's or MPI's
    torch.set_num_threads(1)  # the others do not exist here
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def wait_for_the_end_of(parent: int) -> None:
    """It has closed its end of the pipe, so this is a matter of microseconds."""
    while os.getppid() == parent:
        time.sleep(0.001)


def reap(child: int, patience: float = 5.0) -> None:
    """Wait for the end of a child that has nothing more to do."""
    limit = time.monotonic() + patience
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


def append_line(log: Path, text: str) -> None:
    """A line like those of the rank's logger, whose descriptor is closed here."""
    with open(log, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def update_status(path: Path, state: Mapping[str, Any], failure: str) -> None:
    """Say in status.json how the run ended, unless it has said so itself."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = {}
    if content.get("state") in ("finished", "stopped"):
        return
    names = ("iteration", "version", "steps", "accounts", "mean_return", "elapsed")
    content |= {name: state[name] for name in names}
    reason = f"signal SIGTERM; not saved: {failure}" if failure else "signal SIGTERM"
    now = time.time()
    write_json(path, {**content, "state": "failed" if failure else "stopped", "reason": reason, "ended": now, "updated": now})
