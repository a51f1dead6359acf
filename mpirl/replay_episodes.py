"""The command `list`, and what all commands ask of an archive's episode table: its rows, and one by its id."""

from __future__ import annotations

import argparse
import json
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpirl.archive.format import EPISODE_COLUMNS
from mpirl.archive.reader import Segment, segments
from mpirl.build import TARGET, closest
from mpirl.errors import UserError
from mpirl.reemulation import emulator_node
from mpirl.table import aligned

Row = dict[str, Any]

COLUMNS = ("id", "emulator", "lane", "rank", "host", "length", "return", "reason", "iteration", "when")
TABLE_COLUMNS = (*EPISODE_COLUMNS, "emulator", "when")
LEFT = ("emulator", "host", "reason", "when")  # of these, the ones that are text
ORDERS = {"time": ("end_iteration", "end_step"), "id": ("id",), "return": ("return",), "length": ("length",), "rank": ("rank",)}
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*")


def add_to(commands: Any) -> None:
    """Add this command to the program's."""
    parser = commands.add_parser("list", help="the episodes that have ended")
    parser.add_argument("--sort", choices=ORDERS, default="time", help="ascending (default: time, as they ended)")
    parser.add_argument("--reverse", action="store_true", help="descending")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first so many")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="as 'return>10', 'length<=200', rank=2, emulator=pong, 'when>=2026-11-01'; all of several must hold",
    )
    parser.add_argument("--json", action="store_true", help="a JSON list with all columns")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The exit code."""
    archive = archive_of(options.archive)
    conditions = [condition(text) for text in options.where]
    rows = [row for row in rows_of(archive) if all(holds(row) for holds in conditions)]
    rows.sort(key=lambda row: [row[name] for name in ORDERS[options.sort]], reverse=options.reverse)
    rows = rows[: options.limit]
    if options.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        cells = [COLUMNS, *(tuple(cell(row[name]) for name in COLUMNS) for row in rows)]
        print("\n".join(aligned(cells, right=" ".join(name for name in COLUMNS if name not in LEFT))))
    else:
        print(f"no {'such ' if conditions else ''}episodes have ended in {archive}")
    return 0


def archive_of(path: Path) -> Path:
    """The archive of a run directory, or the folder itself. Raises UserError where there is none."""
    for folder in (path / "archive", path):
        if folder.is_dir() and segments(folder):
            return folder
    if not path.is_dir():
        raise UserError(f"no run at {path}: name a run directory such as runs/pong/1, or the folder of an archive")
    raise UserError(f"no archive in {path}: neither it nor archive/ in it holds a closed segment (000000.h5 and so on)")


def rows_of(archive: Path) -> Iterator[Row]:
    """The rows of the episode table, and beside its columns `emulator`, `iteration` (of the end) and `when`.

    when: the time at which the segment that holds the episode's end was begun, ISO 8601, UTC.
    """
    for path in segments(archive):
        with Segment(path) as segment:
            names = [emulator_name(segment.header, lane) for lane in range(len(segment.header["lane_rank"]))]
            for row in segment.episodes():
                more = {"emulator": names[row["lane"]], "iteration": row["end_iteration"], "when": segment.created}
                yield {**row, **more}


def emulator_name(header: Mapping[str, Any], lane: int) -> str:
    """The game or id of a lane's emulator, else the name of its class."""
    if "emulator" not in header["config"]:
        return "imported"
    node = emulator_node(header, lane)
    return str(node.get("game") or node.get("id") or node[TARGET].rpartition(".")[2])


def row_of(archive: Path, id: int) -> Row:
    """The row of one episode. Raises UserError for one that is not there."""
    known = []
    for row in rows_of(archive):
        if row["id"] == id:
            return row
        known.append(row["id"])
    raise UserError(f"no episode {id} has ended in {archive}: {nearest(id, known)}")


def nearest(id: int, known: Collection[int]) -> str:
    """The ids that there are, in words."""
    if not known:
        return "it holds no episode"
    close = sorted(sorted(known, key=lambda other: abs(other - id))[:3])
    return f"ids close to it are {', '.join(map(str, close))}; all are from {min(known)} to {max(known)}"


def condition(text: str) -> Callable[[Row], bool]:
    """The test that 'return>10' stands for."""
    match = CONDITION.fullmatch(text)
    if not match or not match[3]:
        raise UserError(f"--where {text!r}: write a column, a comparison (= != < <= > >=) and a value, as 'return>10'")
    name, compare, wanted = match[1], COMPARISONS[match[2]], match[3]
    known = dict.fromkeys([*COLUMNS, *EPISODE_COLUMNS])
    if name not in known:
        raise UserError(f"--where {text!r}: no column {name!r}{closest(name, known)}; there are {', '.join(known)}")
    if EPISODE_COLUMNS.get(name, "int64" if name == "iteration" else "str") == "str":
        return lambda row: compare(row[name], wanted)
    try:
        number = float(wanted)
    except ValueError as error:
        raise UserError(f"--where {text!r}: {name} is a number, {wanted!r} is none") from error
    return lambda row: compare(row[name], number)


def cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
