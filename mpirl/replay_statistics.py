"""The command `stats`: returns and lengths of an archive's episodes over the steps of the run, as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpirl.archive.reader import Segment, segments
from mpirl.errors import UserError
from mpirl.replay_episodes import archive_of, rows_of
from mpirl.replay_output import add_output, check_output, whole
from mpirl.statistics import check_installed, plot


def add_to(commands: Any) -> None:
    """Add this command to the program's."""
    parser = commands.add_parser("stats", help="returns and lengths over the steps of the run, as a picture")
    add_output(parser, "FILE.png", required=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The exit code."""
    check_output(options, [".png"])
    check_installed()
    archive = archive_of(options.archive)
    rows = sorted(rows_of(archive), key=lambda row: (row["end_iteration"], row["end_step"]))
    if not rows:
        raise UserError(f"no episode has ended in {archive}: there is nothing to draw")
    begins = beginnings(archive)
    slots = [begins[row["end_iteration"]].slots + begins[row["end_iteration"]].lanes * row["end_step"] for row in rows]
    steps = np.array(slots) - np.arange(len(rows))  # every episode that ended before left a slot that was no step
    returns, lengths = (np.array([row[name] for row in rows], np.float64) for name in ("return", "length"))
    with whole(options.output) as path:
        plot(steps, {"return": returns, "length": lengths}, str(options.archive), path)
    recent = f"mean return {returns.mean():.2f}, of the last 100 {returns[-100:].mean():.2f}"
    print(f"{options.output}: {len(rows):,} episodes, {recent}, best {returns.max():g}, mean length {lengths.mean():.1f}")
    return 0


class Beginning(NamedTuple):
    """Of an iteration: slots in all lanes before it, and its lanes."""

    slots: int
    lanes: int


def beginnings(archive: Path) -> dict[int, Beginning]:
    """By iteration; missing ones count like those after them."""
    found: dict[int, Beginning] = {}
    total = before = 0
    for path in segments(archive):
        with Segment(path) as segment:
            lanes = len(segment.header["lane_rank"])
            for iteration in segment.iterations.tolist():
                total += lanes * segment.layout.steps * (iteration - before - 1)
                found[iteration] = Beginning(total, lanes)
                total, before = total + lanes * segment.layout.steps, iteration
    return found
