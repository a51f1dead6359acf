"""The commands `show` and `csv`: an episode step by step, and tables for other programs."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment, segments
from mpirl.errors import UserError
from mpirl.replay_episodes import TABLE_COLUMNS, Row, archive_of, cell, row_of, rows_of
from mpirl.replay_output import add_output, check_output, whole
from mpirl.specs import StepType
from mpirl.table import aligned

BY_STEP = ("action", "reward", "log_prob", "discount")
SMALL = 6  # values; of a larger observation, the least, the mean and the largest are shown


@dataclass(frozen=True)
class Steps:
    """The archived fields of one episode: by_step [length, ...], by_observation and observation [length + 1, ...]."""

    by_step: dict[str, np.ndarray]
    by_observation: dict[str, np.ndarray]
    observation: dict[str, np.ndarray]


def add_to(commands: Any) -> None:
    """Add these commands to the program's."""
    show = commands.add_parser("show", help="one episode step by step")
    show.add_argument("id", type=int, metavar="ID")
    show.add_argument("--observations", action="store_true", help="their values; of large ones the least, mean and largest")
    show.set_defaults(run=run_show)
    table = commands.add_parser("csv", help="the episode table, or the steps of an episode, as CSV")
    table.add_argument("id", type=int, nargs="?", metavar="ID", help="of the episode whose steps are wanted")
    add_output(table, "FILE.csv", required=False)
    table.set_defaults(run=run_csv)


def run_show(options: argparse.Namespace) -> int:
    """Print an episode; the exit code."""
    archive = archive_of(options.archive)
    row = row_of(archive, options.id)
    steps = read_steps(archive, row, with_observations=options.observations)
    print(
        f"episode {row['id']}: {row['emulator']}, lane {row['lane']} of rank {row['rank']} {row['host']}, "
        f"return {row['return']:g} in {row['length']} steps, {row['reason']}\n"
        f"from iteration {row['start_iteration']}, t = {row['start_step']} "
        f"to iteration {row['end_iteration']}, t = {row['end_step']}"
    )
    lines = [{**line, **observed} for line, observed in zip(step_rows(steps), observation_rows(steps))]
    head = tuple(lines[0])
    print("\n".join(aligned([head, *(tuple(shown(line[name]) for name in head) for line in lines)], right=" ".join(head))))
    return 0


def run_csv(options: argparse.Namespace) -> int:
    """Write a table; the exit code."""
    archive = archive_of(options.archive)
    if options.output:
        check_output(options, [".csv"])
    if options.id is None:
        rows, columns = rows_of(archive), TABLE_COLUMNS
    else:
        lines = [flat(line) for line in step_rows(read_steps(archive, row_of(archive, options.id)))]
        rows, columns = iter(lines), tuple(lines[0])
    with whole(options.output) if options.output else nullcontext(None) as path:
        write_csv(rows, columns, path)
    return 0


def write_csv(rows: Iterable[Row], columns: Iterable[str], path: Path | None) -> None:
    """To a file, or to standard output."""
    with open(path, "w", newline="") if path else nullcontext(sys.stdout) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns := list(columns))
        table.writerows([row[name] for name in columns] for row in rows)


def read_steps(archive: Path, row: Row, with_observations: bool = False) -> Steps:
    """The fields of an episode that has ended. Raises UserError where a part of it is not there any more."""
    parts: dict[str, list[np.ndarray]] = {}
    missing = set(range(row["start_iteration"], row["end_iteration"] + 1)) if row["start_iteration"] >= 0 else {-1}
    extras: set[str] = set()
    for path in segments(archive):
        with Segment(path) as segment:
            specs = segment.layout.specs
            extras |= {*segment.layout.extras, *specs.extras}
            names = [*BY_STEP, "step_type", *segment.layout.extras, *specs.extras]
            names += specs.observation if with_observations else ()
            for index, iteration in enumerate(segment.iterations.tolist()):
                if iteration in missing:
                    missing.remove(iteration)
                    for name, part in read_part(segment, index, iteration, row, names):
                        parts.setdefault(name, []).append(part)
    if missing:
        what = "its beginning" if -1 in missing else f"iteration {', '.join(map(str, sorted(missing)))}"
        raise UserError(f"episode {row['id']} cannot be shown: {what} is not in the archive")
    fields = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    by_observation = {name: fields[name] for name in ("step_type", *sorted(extras)) if name in fields}
    observation = {name: array for name, array in fields.items() if name.partition(".")[0] == "observation"}
    return Steps({name: fields[name] for name in BY_STEP if name in fields}, by_observation, observation)


def read_part(
    segment: Segment, index: int, iteration: int, row: Row, names: Iterable[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """What one iteration holds of an episode, by field."""
    is_end = iteration == row["end_iteration"]
    first = row["start_step"] if iteration == row["start_iteration"] else 0
    last = row["end_step"] if is_end else segment.layout.steps  # observation `last` is observation 0 of the next iteration
    for name in names:
        part = segment.part(name, index, row["lane"])
        if part is not None:
            shift = segment.layout.context if name in segment.layout.specs.observation else 0
            yield name, part[shift + first : shift + last + (is_end and name not in BY_STEP)]


def step_rows(steps: Steps) -> Iterator[Row]:
    """A row for every observation: what belongs to it, and the action that followed and led to the reward."""
    length = len(steps.by_observation["step_type"])
    for t in range(length):
        row: Row = {"t": t, "step_type": StepType(steps.by_observation["step_type"][t]).name}
        row |= {name: array[t] if t + 1 < length else "" for name, array in steps.by_step.items()}
        yield row | {name: array[t] for name, array in steps.by_observation.items() if name != "step_type"}


def observation_rows(steps: Steps) -> Iterator[Row]:
    """What is shown of every observation; nothing where none were read."""
    for t in range(len(steps.by_observation["step_type"])):
        yield {name: summary(array[t]) for name, array in steps.observation.items()}


def summary(value: np.ndarray) -> str:
    if value.size <= SMALL:
        return shown(value)
    return f"{cell(float(value.min()))} .. {cell(float(value.mean()))} .. {cell(float(value.max()))}"


def shown(value: Any) -> str:
    """A value in a table's cell."""
    if isinstance(value, (np.ndarray, np.generic)):
        texts = [cell(item) for item in np.ravel(value).tolist()]
        return texts[0] if np.ndim(value) == 0 else f"[{' '.join(texts)}]"
    return cell(value)


def flat(row: Row) -> Row:
    """A row with a column of its own for every value of an array, as action[0], action[1]."""
    found: Row = {}
    for name, value in row.items():
        if np.ndim(value) == 0:
            found[name] = value
        else:
            found |= {f"{name}[{index}]": item for index, item in enumerate(np.ravel(value).tolist())}
    return found
