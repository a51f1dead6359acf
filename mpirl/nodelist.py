"""Slurm's compressed node lists (SLURM_JOB_NODELIST, SLURM_TASKS_PER_NODE) as hosts. Pure."""

from __future__ import annotations

import re
from itertools import product

from mpirl.errors import UserError
from mpirl.hostfile import SLURM, Host, Hosts

MOST = 100_000  # hosts in one range


def slurm_hosts(nodelist: str, tasks_per_node: str | None) -> Hosts:
    """The hosts of SLURM_JOB_NODELIST, with the ranks that SLURM_TASKS_PER_NODE gives each (1 without)."""
    names = expand_nodelist(nodelist)
    tasks = expand_tasks(tasks_per_node) if tasks_per_node else [1] * len(names)
    if len(tasks) != len(names):
        raise UserError(f"tasks per node {tasks_per_node!r}: {len(tasks)} hosts, but {nodelist!r} names {len(names)}: mend one")
    return Hosts(f"the node list {nodelist}", SLURM, tuple(Host(name, count) for name, count in zip(names, tasks)))


def expand_nodelist(text: str) -> list[str]:
    """'cpu[1-3,07],gpu0' as names; several brackets in a name vary like the digits of a number."""
    malformed = UserError(f"node list {text!r}: write names as in cpu[1-4,7],gpu0")
    items = re.split(r",(?![^\[]*\])", text.strip())
    names: list[str] = []
    for item in items:
        pieces = re.split(r"\[([^\[\]]+)\]", item.strip())
        if not item.strip() or any(set("[], \t") & set(piece) for piece in pieces[::2]):
            raise malformed
        choices = [bracket(piece, malformed) if index % 2 else [piece] for index, piece in enumerate(pieces)]
        names += ("".join(parts) for parts in product(*choices))
    return names


def bracket(text: str, malformed: UserError) -> list[str]:
    """'1-3,07' as texts, with as many digits as the first number of a range has."""
    found: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match or not int(match[1]) <= int(match[2] or match[1]) < int(match[1]) + MOST:
            raise malformed
        found += [str(number).zfill(len(match[1])) for number in range(int(match[1]), int(match[2] or match[1]) + 1)]
    return found


def expand_tasks(text: str) -> list[int]:
    """'2(x3),1' as [2, 2, 2, 1]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match or int(match[1]) < 1 or not 0 < int(match[2] or 1) <= MOST:
            raise UserError(f"tasks per node {text!r}: write numbers as in 2(x3),1")
        found += [int(match[1])] * int(match[2] or 1)
    return found
