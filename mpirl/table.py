"""The table of a world: what runs where, what each iteration moves, and what rank 0 holds in memory. Pure text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mpirl.plan import Plan
from mpirl.trajectory import Layout

GIGABIT = 1e9 / 8  # bytes per second
ARCHIVE_COPIES = 1
"""Batches that the archive keeps while it writes."""


@dataclass(frozen=True)
class Traffic:
    """What one iteration moves, in bytes: weights to every worker, and the trajectory of every lane from it."""

    weights: int
    lane: int

    def of(self, lanes: Sequence[int]) -> tuple[int, int]:
        """To and from workers with so many lanes each."""
        return self.weights * len(lanes), self.lane * sum(lanes)


def describe_world(
    plan: Plan,
    layout: Layout,
    num_weights: int,
    title: str = "",
    device: str = "auto",
    archived: bool = True,
    threads_known: Sequence[bool] | None = None,
    notes: Sequence[str] = (),
    lag: int = 0,
    bytes_per_weight: int = 4,
) -> str:
    """The whole text, several lines.

    num_weights: P. device: of the learner, in words. threads_known: of every rank, None for all; where a host's cores are
    not known, its threads mostly are not. notes: warnings beside the plan's. lag: the setting schedule.lag.
    bytes_per_weight: that a broadcast takes, 0 for none.
    """
    traffic = Traffic(bytes_per_weight * num_weights, sum(field.nbytes for field in layout.table().values()))
    hosts = len(set(plan.hosts))
    steps = plan.lanes_total * layout.steps
    lines = [title] if title else []
    lines += [
        f"{len(plan.hosts)} ranks on {hosts} host{'s' if hosts > 1 else ''}, {plan.lanes_total} lanes x {layout.steps} steps = "
        f"a batch of {steps:,} steps, {num_weights:,} weights",
        "",
        *rank_rows(plan, traffic, device, threads_known or [True] * len(plan.hosts)),
        "",
        "each iteration moves (weights down to the workers, trajectories up from them)",
        *host_rows(plan, traffic),
        "",
        *memory_lines(plan, traffic.lane, 4 * num_weights, device, archived, lag),
    ]
    return "\n".join(lines + [f"warning: {text}" for text in (*plan.warnings, *notes)])


def rank_rows(plan: Plan, traffic: Traffic, device: str, threads_known: Sequence[bool]) -> list[str]:
    """A row for every rank, or for consecutive ranks of a host that are alike; the numbers are each rank's."""
    cells = [rank_cells(plan, rank, traffic, device, threads_known[rank]) for rank in range(len(plan.hosts))]
    heads = ("rank", "host", "role", "lanes", "cores", "threads", "GPU", "weights", "trajectories", "emulator")
    rows = [(ranks, *row) for ranks, row in runs(cells)]
    shown = [index for index in range(len(heads)) if heads[index] != "emulator" or any(plan.emulator)]
    return aligned([[row[index] for index in shown] for row in (heads, *rows)], right="lanes threads weights trajectories")


def rank_cells(plan: Plan, rank: int, traffic: Traffic, device: str, threads_known: bool) -> tuple[str, ...]:
    """A rank's row without its number."""
    down, up = traffic.of([plan.lanes[rank]])
    gpu = {None: "inherit", "": "none"}.get(plan.gpus[rank], plan.gpus[rank])
    return (
        plan.hosts[rank],
        "worker" if rank else "learner",
        str(plan.lanes[rank]) if rank else "-",
        show_cores(plan.cores[rank], plan.bound[rank]),
        str(plan.threads[rank]) if threads_known else "?",
        str(gpu) if rank else device,
        size(down) if rank else "-",
        size(up) if rank else "-",
        show_settings(plan.emulator[rank]),
    )


def host_rows(plan: Plan, traffic: Traffic) -> list[str]:
    """A row for the link of every host, or for hosts in a row that are alike, and what crosses the network in total."""
    lanes_of: dict[str, list[int]] = {}
    for host, lanes in list(zip(plan.hosts, plan.lanes))[1:]:
        lanes_of.setdefault(host, []).append(lanes)
    inside = lanes_of.pop(plan.hosts[0], None)
    moved = {host: (len(lanes), *traffic.of(lanes)) for host, lanes in lanes_of.items()}
    table = [("link to", "workers", "down", "up")]
    if inside:
        table.append(link_row(f"{plan.hosts[0]} (rank 0's own, no network)", len(inside), *traffic.of(inside)))
    for numbers, group in groupby(moved, key=lambda host: moved[host]):
        hosts = list(group)
        name = hosts[0] if len(hosts) == 1 else f"{hosts[0]} .. {hosts[-1]} ({len(hosts)} hosts, each)"
        table.append(link_row(name, *numbers))
    if not moved:
        return aligned(table, right="workers down up")
    total = [sum(column) for column in zip(*moved.values())]
    seconds = (traffic.weights + total[2]) / GIGABIT
    return [
        *aligned([*table, link_row("network in total", *total)], right="workers down up"),
        f"{plan.hosts[0]}'s link carries all trajectories and the weights at least once: {seconds:.2g} s at 1 Gbit/s",
    ]


def link_row(name: str, workers: int, down: int, up: int) -> tuple[str, ...]:
    return name, str(workers), size(down), size(up)


def memory_lines(plan: Plan, lane: int, weights: int, device: str, archived: bool, lag: int) -> list[str]:
    """What is counted of rank 0's memory; for both cases where `device` does not tell whether there is a GPU."""
    batch = plan.lanes_total * lane
    learning = {"weights": weights, "gradients": weights, "optimizer (as Adam's)": 2 * weights}
    copies = {"its copy for the archive": ARCHIVE_COPIES * batch} if archived else {}
    copies |= {"the next batch": batch} if lag else {}
    host = {"batch": batch, **copies, "a checkpoint's weights": weights}
    on_cpu = [sum_line("memory of rank 0", host | learning)]
    on_gpu = [
        sum_line("memory of rank 0, learning on a GPU", host | {"weights": weights}),
        sum_line("memory of that GPU", {"batch": batch} | learning),
    ]
    lines = on_gpu if device.startswith("cuda") else on_cpu if device.startswith("cpu") else on_cpu + on_gpu
    others = "not counted: Python and torch, a minibatch's activations, a replay buffer"
    return [*lines, others + ", the archive's open segment" * archived]


def sum_line(what: str, parts: Mapping[str, int]) -> str:
    return f"{what}: {size(sum(parts.values()))} = " + " + ".join(f"{name} {size(number)}" for name, number in parts.items())


def runs(cells: Sequence[tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Equal neighbours as one: ('1-8', cells)."""
    found = []
    for row, group in groupby(range(len(cells)), key=lambda index: cells[index]):
        ranks = list(group)
        found.append((str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}", row))
    return found


def show_cores(cores: Sequence[int], bound: bool) -> str:
    """How many a rank may use, and which if it is bound to them."""
    if not cores:
        return "?"
    return f"{len(cores)} (bound: {show_numbers(cores)})" if bound else str(len(cores))


def show_numbers(numbers: Sequence[int]) -> str:
    """0-3,8 of [0, 1, 2, 3, 8]."""
    parts = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        block = [number for _, number in group]
        parts.append(str(block[0]) if len(block) == 1 else f"{block[0]}-{block[-1]}")
    return ",".join(parts)


def show_settings(settings: Mapping[str, Any], prefix: str = "") -> str:
    """key=value, nested.key=value; nothing where nothing differs."""
    parts = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        parts.append(show_settings(value, f"{prefix}{key}.") if nested else f"{prefix}{key}={value}")
    return ", ".join(parts)


def size(number: float) -> str:
    """Bytes in words: 6.75 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            break
        number /= 1000
    else:
        unit = "TB"
    return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.3g} {unit}"


def aligned(rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Rows as lines of columns; the columns whose heads are in `right` end at their right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = [str.rjust if head in right.split() else str.ljust for head in rows[0]]
    return ["  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths)).rstrip() for row in rows]
