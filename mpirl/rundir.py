"""The run directory: who may use it, and what stands where in it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from mpirl.errors import UserError

CONFIG, COMPLETED = "config.yaml", "COMPLETED"


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
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not overwrite:
                raise UserError(
                    f"run directory {self.path} exists: write resume=true to go on with it, overwrite=true to replace it, "
                    "or another trial=NAME or run_dir=PATH"
                )
            if not (self.path / CONFIG).is_file():
                raise UserError(
                    f"{self.path} is no run directory (it has no {CONFIG}), so it is not overwritten: remove it yourself"
                )
            self._put_aside()
        try:
            self._make(self.path)
            self.lock()
            self._is_new = True
            self._make(self.archive, self.checkpoints, self.logs)
            (self.path / CONFIG).write_text(config_text)
        except BaseException:
            self.discard()
            raise

    def resume(self) -> None:
        """Take an existing run up again."""
        if not (self.path / CONFIG).is_file():
            raise UserError(f"resume=true: no run in {self.path} (no {CONFIG}); start without resume=true, or mend run_dir")
        self.lock()
        self._make(self.archive, self.checkpoints, self.logs)

    def keep(self) -> None:
        """The run has begun: it stays, and a run that it replaces goes."""
        self._is_new = False
        (self.path / COMPLETED).unlink(missing_ok=True)
        if self._replaced:
            shutil.rmtree(self._replaced)
            self._replaced = None

    def discard(self) -> None:
        """If the run never began, leave everything as it was before `create`."""
        if self._is_new:
            self._is_new = False
            shutil.rmtree(self.path, ignore_errors=True)
        if self._replaced and not self.path.exists():
            self._replaced.rename(self.path)
            self._replaced = None

    def _put_aside(self) -> None:
        self.lock()
        self.release()
        self._replaced = self.path.with_name(f".{self.path.name}.replaced-{os.getpid()}")
        self.path.rename(self._replaced)

    def lock(self) -> None:
        """Keep other runs out until `release` or the end of this process."""
        try:
            self._lock = open(self.path / ".lock", "w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise UserError(f"run directory {self.path} is in use by a run that is still going") from error
        except OSError as error:
            raise UserError(f"cannot lock {self.path}: {error.strerror}; mend run_dir") from error

    def complete(self, text: str) -> None:
        """Write the completion marker: everything else of the run is on disk."""
        temporary = self.path / f"{COMPLETED}.tmp"
        with open(temporary, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / COMPLETED)

    def release(self) -> None:
        """Let others in again."""
        if self._lock:
            self._lock.close()
            self._lock = None

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
