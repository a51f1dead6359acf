"""The run directory: who may use it, and what stands where in it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from mpirl.errors import UserError
from mpirl.files import write_atomically

CONFIG, COMPLETED, LOCK = "config.yaml", "COMPLETED", ".lock"
MOMENT = 0.05  # seconds: who lists runs holds a lock for a moment, to see whether it is free
SAVING = 10.0  # seconds that a run gets which was told to stop and saves


class RunDirectory:
    """`config.yaml`, `status.json`, `archive/`, `checkpoints/`, `logs/`, TensorBoard's event files, and at the very end
    `COMPLETED`, written last by rank 0: launchers' exit codes do not prove success, this file does."""

    def __init__(self, path: Path):
        self.path = path
        self.archive, self.checkpoints, self.logs = path / "archive", path / "checkpoints", path / "logs"
        self.status = path / "status.json"
        self._lock: TextIO | None = None
        self._replaced: Path | None = None  # the run that `overwrite` put aside
        self._is_new = False  # made here, and nothing of value in it yet

    def create(self, config_text: str, overwrite: bool) -> None:
        """Make the directory for a new run; an existing one is refused, or replaced where `overwrite` says so."""
        if not (self.path / LOCK).exists():
            self._check_free(overwrite)  # first, so that nothing is left in a folder that is no run
        self._make(self.path)
        self.lock()
        try:
            self._check_free(overwrite)  # from here on, no other run can come in between
            self._put_aside()
            self._is_new = True
            self._make(self.archive, self.checkpoints, self.logs)
            self._write_config(config_text)
        except BaseException:
            self.discard()
            self.release()
            raise

    def resume(self) -> None:
        """Take an existing run up again."""
        self._check_run()
        self.lock()
        try:
            self._check_run()  # it may have been a new run that never began, and is gone
            self._make(self.archive, self.checkpoints, self.logs)
        except BaseException:
            self.release()
            raise

    def keep(self, config_text: str) -> None:
        """The run has begun, with this config, which a resume may have changed: it stays, and a run that it replaces goes."""
        if not self._is_new:  # `create` has written it
            self._write_config(config_text)
        self._is_new = False
        (self.path / COMPLETED).unlink(missing_ok=True)
        if self._replaced:
            shutil.rmtree(self._replaced)
            self._replaced = None

    def discard(self) -> None:
        """If the run never began, leave everything as it was before `create`."""
        if not self._is_new:
            return
        self._is_new = False
        if not self._replaced:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for entry in self._entries():
            if entry != self._replaced:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
        self._bring_back(self._replaced)
        self._replaced = None

    def _check_free(self, overwrite: bool) -> None:
        """Refuse a path that holds something, unless it is a run that `overwrite` gives up."""
        if not self._entries() if self.path.is_dir() else not self.path.exists():
            return
        if not overwrite:
            raise UserError(
                f"run directory {self.path} exists: write resume=true to go on with it, overwrite=true to replace it, "
                "or another trial=NAME or run_dir=PATH"
            )
        if not (self.path / CONFIG).is_file():
            raise UserError(
                f"{self.path} is no run directory (it has no {CONFIG}), so it is not overwritten: remove it yourself"
            )

    def _check_run(self) -> None:
        if not (self.path / CONFIG).is_file():
            raise UserError(f"resume=true: no run in {self.path} (no {CONFIG}); start without resume=true, or mend run_dir")

    def _put_aside(self) -> None:
        """Move the run that is here into a hidden folder inside: the directory and its lock stay, so nobody slips in."""
        entries = self._entries()
        if not entries:
            return
        replaced = Path(tempfile.mkdtemp(prefix=".replaced-", dir=self.path))
        try:
            for entry in entries:
                entry.rename(replaced / entry.name)
        except BaseException:
            self._bring_back(replaced)
            raise
        self._replaced = replaced

    def _bring_back(self, replaced: Path) -> None:
        for entry in list(replaced.iterdir()):
            entry.rename(self.path / entry.name)
        replaced.rmdir()

    def _entries(self) -> list[Path]:
        """What is here, but for the lock."""
        try:
            return [entry for entry in self.path.iterdir() if entry.name != LOCK]
        except FileNotFoundError:  # a run that never began has just removed it
            return []

    def lock(self) -> None:
        """Keep other runs out until `release` or the end of this process."""
        start, told = time.monotonic(), False
        while not self._try_to_lock():
            waited, is_saving = time.monotonic() - start, self._is_being_saved()
            if waited >= (SAVING if is_saving else MOMENT):
                raise UserError(f"run directory {self.path} is in use by a run that is still going")
            if waited >= 1 and not told:
                print(f"{self.path}: its run was told to stop and is still saving; waiting for it", flush=True)
                told = True
            time.sleep(0.01)

    def _try_to_lock(self) -> bool:
        """Whether the lock is ours; else another run holds it, or it went with the directory of one that never began."""
        try:
            self._lock = open(self.path / LOCK, "a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / LOCK)):
                self._lock.truncate(0)
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            self.release()
            raise UserError(f"cannot lock {self.path}: {error.strerror}; mend run_dir") from error
        self.release()
        return False

    def _is_being_saved(self) -> bool:
        try:
            return (self.path / LOCK).read_text() != ""
        except OSError:
            return False

    @property
    def lock_descriptor(self) -> int:
        """Of the locked file: a child that keeps it open keeps the lock. Others wait a while for one with text in it."""
        assert self._lock is not None, "the run directory is not locked"
        return self._lock.fileno()

    def complete(self, text: str) -> None:
        """Write the completion marker: everything else of the run is on disk."""
        write_atomically(self.path / COMPLETED, f"{text}\n".encode())

    def release(self) -> None:
        """Let others in again."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _write_config(self, text: str) -> None:
        try:
            write_atomically(self.path / CONFIG, text.encode())
        except OSError as error:
            raise UserError(f"cannot write {self.path / CONFIG}: {error.strerror}; free space, or mend run_dir") from error

    def _make(self, *folders: Path) -> None:
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot make {folder}: {error.strerror}; mend run_dir") from error


def open_log(folder: Path, rank: int, header: Mapping[str, Any]) -> logging.Logger:
    """This rank's log file, `logs/rank-NNNN.log` on its host; made where it is missing. Errors only cost the log."""
    log = logging.getLogger(f"mpirl.rank{rank}")
    close_log(log)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.FileHandler(folder / f"rank-{rank:04d}.log")
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.info("start: %s", ", ".join(f"{key} {value}" for key, value in header.items()))
    return log


def close_log(log: logging.Logger) -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
