"""Checkpoints: atomic files that resume a run; the last few and the best are kept."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mpirl.errors import UserError
from mpirl.files import write_atomically
from mpirl.learner import FORMAT, Learner

NAME = re.compile(r"^(\d{8})\.pt$")


class Checkpoints:
    """Files `NNNNNNNN.pt` (by iteration) and `best.pt` (highest mean return of the last 100 episodes) in `directory`."""

    def __init__(self, directory: Path, keep: int = 3):
        self.directory, self.keep = directory, keep
        self._best = best_return(directory)

    def save(self, learner: Learner) -> Path:
        """Write the learner's state. The archive is brought to disk first, so that none of its segments straddles a save."""
        if learner.archive:
            learner.archive.flush()
        path = self.save_state(learner.state_dict())
        learner.times.lap("save")
        return path

    def save_state(self, state: Mapping[str, Any]) -> Path:
        """Write a learner's state."""
        path = self.directory / f"{state['iteration']:08d}.pt"
        write(path, state)
        self.keep_best(state)
        for old in numbered(self.directory)[: -self.keep]:
            old.unlink()
        return path

    def keep_best(self, state: Mapping[str, Any]) -> None:
        """Write `state` to best.pt if its mean return is higher than that of the one there."""
        if state["mean_return"] is not None and state["mean_return"] > self._best:
            self._best = state["mean_return"]
            write(self.directory / "best.pt", state)


def load(directory: Path, which: str = "latest") -> tuple[Path, dict[str, Any]]:
    """The path and state of a checkpoint: "latest", "best", an iteration's number, or a path to a file."""
    if which == "latest":
        files = numbered(directory)
        if not files:
            raise UserError(f"no checkpoint in {directory}: nothing to go on from; start anew with overwrite=true")
        path = files[-1]
    elif which == "best":
        path = directory / "best.pt"
    elif which.isdigit():
        path = directory / f"{int(which):08d}.pt"
    else:
        path = Path(which)
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in directory.glob("*.pt"))) or "none"
        raise UserError(f"no checkpoint {path}; there are: {there}")
    return path, read(path)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's state, on the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): remove it, or choose another by its number"
        ) from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise UserError(f"checkpoint {path} has format {found}, this mpirl reads {FORMAT}")
    return state


def numbered(directory: Path) -> list[Path]:
    """The checkpoints by iteration, oldest first."""
    return sorted(path for path in directory.glob("*.pt") if NAME.match(path.name))


def best_return(directory: Path) -> float:
    """The mean return of the best checkpoint so far, -inf if there is none."""
    path = directory / "best.pt"
    return float(read(path)["mean_return"]) if path.is_file() else float("-inf")


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Serialise `state` and write it, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        write_atomically(path, buffer.getbuffer())
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be written: {error.strerror or error}; free space and start again with resume=true"
        ) from error
