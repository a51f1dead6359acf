"""The runs below a folder, listed: `python -m mpirl.runs [FOLDER]`. It reads status.json files and disturbs no run."""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mpirl.errors import UserError
from mpirl.rundir import COMPLETED, CONFIG, LOCK, RunDirectory

STATES = ("running", "finished", "stopped", "failed", "crashed", "unreadable")
ORDERS = ("updated", "name", "return", "steps")
DROPPED_FIRST = ("best", "evaluation", "fps", "hosts", "ETA", "updated", "run")  # columns, where a terminal is narrow
RIGHT = ("steps", "return", "evaluation", "best", "fps", "updated", "ETA")
EPILOG = """states: running; finished (all steps done, COMPLETED is there); stopped (saved, resume=true goes on); failed (an
error ended it); crashed (it says it runs, but no process holds its lock); unreadable (its status.json cannot be read)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its status.json tells it; None is what is not known. updated: Unix time. age, eta: seconds. note: what to do."""

    name: str
    trial: str
    state: str
    steps: float | None
    total_steps: float | None
    mean_return: float | None
    evaluation: float | None
    best_return: float | None
    fps: float | None
    hosts: list[str]
    updated: float
    age: float
    eta: float | None
    run_dir: str
    note: str


def find_runs(folder: Path) -> Iterator[Path]:
    """Run directories at any depth, each once; links are followed, hidden folders are not."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        path, run, skipped = Path(root), RunDirectory(Path(root)), set()
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
        elif CONFIG in files and run.status.name in files:
            yield path
            skipped = {run.archive.name, run.checkpoints.name, run.logs.name}
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        folders.sort(key=lambda name: ((path / name).is_symlink(), name))


def read_run(path: Path, now: float) -> Run:
    """The run in `path`. A status.json that cannot be read makes it "unreadable", and the note says why."""
    file = RunDirectory(path).status
    try:
        status = json.loads(file.read_text())
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise ValueError("it does not tell the state of a run")
        state, note = judge(path, status)
    except (OSError, ValueError, RecursionError) as error:
        status, state, note = {}, "unreadable", f"{file.name} cannot be read: {error}"
    evaluation, hosts = status.get("evaluation"), status.get("hosts")
    updated = number(status.get("updated")) or (file.stat().st_mtime if file.exists() else now)
    return Run(
        name=str(status.get("name") or path.absolute().parent.name),
        trial=str(status.get("trial") or path.absolute().name),
        state=state,
        **{name: number(status.get(name)) for name in ("steps", "total_steps", "mean_return", "best_return", "fps")},
        evaluation=number(evaluation.get("mean_reward")) if isinstance(evaluation, dict) else None,
        hosts=[str(host) for host in hosts] if isinstance(hosts, list) else [],
        updated=updated,
        age=max(0.0, now - updated),
        eta=number(status.get("eta")) if state == "running" else None,
        run_dir=str(path),
        note=note,
    )


def judge(path: Path, status: Mapping[str, Any]) -> tuple[str, str]:
    """The true state, and what to do about it: a process that was killed could not say so."""
    if (path / COMPLETED).exists():
        return "finished", ""
    state, reason = status["state"], brief(status.get("reason"))
    if state in ("running", "finished"):  # without COMPLETED, its end is not on disk yet
        return ("running", "") if is_going(path, status) else ("crashed", go_on(path))
    return state, f"{reason}; {go_on(path)}" if reason else go_on(path)


def brief(reason: Any) -> str:
    """The first and the last line: of a traceback, where and what."""
    lines = [line.strip() for line in str(reason or "").strip().splitlines()]
    return " ... ".join(dict.fromkeys(lines[:1] + lines[-1:]))


def go_on(path: Path) -> str:
    if any(RunDirectory(path).checkpoints.glob("*.pt")):
        return f"go on with resume=true run_dir={path}"
    return f"it has no checkpoint to go on from: start again with overwrite=true run_dir={path}"


def is_going(path: Path, status: Mapping[str, Any]) -> bool:
    """Whether a process holds the run's lock. Where that cannot be told: whether its process is there, if it would be here."""
    try:
        with open(path / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # if it is free, for microseconds: runs that start expect that
            return False
    except (BlockingIOError, FileNotFoundError) as error:
        return isinstance(error, BlockingIOError)
    except OSError:
        hosts = status.get("hosts")
        is_here = isinstance(hosts, list) and hosts[:1] == [socket.gethostname()]
        return not is_here or Path(f"/proc/{status.get('pid')}").exists()


def sort_key(run: Run, by: str) -> tuple[Any, ...]:
    """Names ascend, with 2 before 10; what is measured descends, with the unknown last."""
    parts = enumerate(re.split(r"(\d+)", f"{run.name}\0{run.trial}\0{run.run_dir}"))
    value = {"updated": run.updated, "return": run.mean_return, "steps": run.steps}.get(by)
    return value is None, -(value or 0), [int(part) if index % 2 else part for index, part in parts]


def row(run: Run) -> dict[str, str]:
    """A run's cells by column."""
    steps = [f"{count:,.0f}" if count is not None else "?" for count in (run.steps, run.total_steps)]
    return {
        "run": f"{run.name}/{run.trial}",
        "state": run.state,
        "steps": "-" if run.steps is None else " / ".join(steps),
        "return": cell(run.mean_return, ",.2f"),
        "evaluation": cell(run.evaluation, ",.2f"),
        "best": cell(run.best_return, ",.2f"),
        "fps": cell(run.fps, ",.0f"),
        "hosts": compress(run.hosts) or "-",
        "updated": f"{duration(run.age)} ago",
        "ETA": "-" if run.eta is None else duration(run.eta),
        "directory": run.run_dir,
    }


def number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def duration(seconds: float) -> str:
    """In a sensible unit: 12 s, 5 min, 7.5 h, 3.2 d."""
    if seconds < 6000:
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def compress(hosts: Iterable[str]) -> str:
    """'gpu0, cpu[1-4]' of gpu0, cpu1, cpu1, cpu2, cpu3, cpu4."""
    groups: dict[Any, list[str]] = {}
    for host in dict.fromkeys(hosts):
        match = re.fullmatch(r"([^.]*?)(\d+)([^.\d]*(?:\..*)?)", host)
        head, digits, tail = match.groups() if match else (host, "", "")
        groups.setdefault((head, tail, len(digits)), []).append(digits)
    return ", ".join(f"{head}{numbers(digits)}{tail}" for (head, tail, _), digits in groups.items())


def numbers(digits: Sequence[str]) -> str:
    """'7' of one, '[1-4,7]' of several, all of one width."""
    parts = []
    for _, group in groupby(enumerate(sorted(digits)), key=lambda pair: int(pair[1] or 0) - pair[0]):
        block = [text for _, text in group]
        parts.append(block[0] if len(block) == 1 else f"{block[0]}-{block[-1]}")
    return parts[0] if len(digits) == 1 else f"[{','.join(parts)}]"


def table(runs: Sequence[Run], width: int | None) -> list[str]:
    """Aligned lines, a head first. width: of the terminal, which the lines then keep by leaving out columns; None for all."""
    rows = [row(run) for run in runs]
    widths = {name: max(len(name), *(len(cells[name]) for cells in rows)) for name in rows[0]}
    for name in DROPPED_FIRST:
        if width is not None and sum(widths.values()) + 2 * (len(widths) - 1) > width:
            del widths[name]
    forms = {name: f"{'>' if name in RIGHT else '<'}{length}" for name, length in widths.items()}
    lines = [{name: name for name in widths}, *rows]
    return ["  ".join(format(cells[name], form) for name, form in forms.items()).rstrip()[:width] for cells in lines]


def show(options: argparse.Namespace) -> None:
    """Print the runs as they are now."""
    folder, now = Path(options.folder), time.time()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: name the one that holds the runs, as in `python -m mpirl.runs FOLDER`")
    found = [run for run in (read_run(path, now) for path in find_runs(folder)) if options.state in (None, run.state)]
    found.sort(key=lambda run: sort_key(run, options.sort))
    if options.json:
        print(json.dumps([dataclasses.asdict(run) for run in found], indent=2), flush=True)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = table(found, width) if found else []
    lines += [f"{run.run_dir} {run.state}: {run.note}" for run in found if run.note]
    print("\n".join(lines) or f"no {options.state + ' ' if options.state else ''}runs in {folder}", flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m mpirl.runs", description=__doc__, epilog=EPILOG)
    made.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="where to look, at any depth (default: runs)")
    made.add_argument("--json", action="store_true", help="a JSON list, one object for each run, instead of a table")
    made.add_argument("--sort", choices=ORDERS, default=ORDERS[0], help="default: last updated first")
    made.add_argument("--state", choices=STATES, help="only runs in this state")
    made.add_argument("--watch", metavar="SECONDS", type=float, help="list again and again, until Ctrl-C")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.watch is not None and not 0 < options.watch < 1e6:
            raise UserError(f"--watch {options.watch:g}: write a number of seconds above 0")
        show(options)
        while options.watch:
            time.sleep(options.watch)
            print("\x1b[H\x1b[2J" if sys.stdout.isatty() else "\n", end="")  # clear the screen
            show(options)
    except UserError as error:
        print(f"mpirl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `| head`: what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
