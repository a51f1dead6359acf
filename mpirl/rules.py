"""Placement rules: settings for some workers, chosen by patterns of ranks or hosts; the first match wins. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpirl.build import closest
from mpirl.errors import UserError

PATTERNS = ("ranks", "hosts")
STEERS = ("lanes", "emulator", "gpus", "cores", "threads")
RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Rule:
    """What the workers get that it matches. None: as without the rule. where: its place in the config, for messages.

    ranks: numbers, or None for all. hosts: patterns with *, ? and Slurm's brackets (cpu[1-16]), or None for all.
    emulator: settings that replace or join those of the config's emulator. gpus: what CUDA_VISIBLE_DEVICES lists.
    """

    where: str
    ranks: frozenset[int] | None
    hosts: tuple[str, ...] | None
    lanes: int | None
    emulator: Mapping[str, Any]
    gpus: tuple[str, ...] | None
    cores: tuple[int, ...] | None
    threads: int | None

    def matches(self, rank: int, host: str) -> bool:
        if self.ranks is not None and rank not in self.ranks:
            return False
        return self.hosts is None or any(is_host(pattern, host) for pattern in self.hosts)


def make_rules(nodes: Sequence[Any] | None) -> list[Rule]:
    """The rules of the config's `placement.rules`."""
    return [make_rule(node, f"placement.rules[{index}]") for index, node in enumerate(nodes or ())]


def make_rule(node: Any, where: str) -> Rule:
    """One rule; raises UserError for keys and values that no rule can have."""
    if not isinstance(node, Mapping):
        raise UserError(f"{where}={node!r}: write a mapping such as {{hosts: 'cpu[1-2]', lanes: 8}}")
    for key in node:
        if key not in PATTERNS + STEERS:
            known = ", ".join(PATTERNS + STEERS)
            raise UserError(f"unknown key {where}.{key}{closest(str(key), PATTERNS + STEERS)}; a rule takes: {known}")
    given = {key: value for key, value in node.items() if value is not None}
    if not set(given) & set(PATTERNS):
        raise UserError(f"{where} names no workers: add ranks (as '1-4,7') or hosts (as 'cpu*')")
    emulator = given.get("emulator", {})
    if not isinstance(emulator, Mapping):
        raise UserError(f"{where}.emulator={emulator!r}: write a mapping of emulator keys")
    return Rule(
        where=where,
        ranks=frozenset(numbers(given["ranks"], f"{where}.ranks")) if "ranks" in given else None,
        hosts=tuple(split_list(given["hosts"])) if "hosts" in given else None,
        lanes=count(given.get("lanes"), f"{where}.lanes", 0),
        emulator=emulator,
        gpus=gpu_names(given["gpus"], f"{where}.gpus") if "gpus" in given else None,
        cores=tuple(numbers(given["cores"], f"{where}.cores")) if "cores" in given else None,
        threads=count(given.get("threads"), f"{where}.threads", 1),
    )


def rule_for(rules: Sequence[Rule], rank: int, host: str) -> Rule | None:
    """The first rule that matches a worker."""
    return next((rule for rule in rules if rule.matches(rank, host)), None)


def joined(node: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config node with some of its keys changed, in nested mappings too."""
    nested = {
        key: joined(node[key], value)
        for key, value in changes.items()
        if isinstance(value, Mapping) and isinstance(node.get(key), Mapping)
    }
    return {**node, **changes, **nested}


def is_host(pattern: str, host: str) -> bool:
    """Whether a pattern means a host, by its full name or the name before the first dot."""
    return any(re.fullmatch(host_expression(pattern), name) for name in (host, host.partition(".")[0]))


def host_expression(pattern: str) -> str:
    """A pattern as a regular expression: * and ? as in shells, [1-16,20] as in Slurm, zeros in front included."""
    pieces = re.split(r"(\[[^\]]*\])", pattern)
    return "".join(bracket_expression(piece) if piece.startswith("[") else wildcards(piece) for piece in pieces)


def wildcards(text: str) -> str:
    return fnmatch.translate(text).removeprefix("(?s:").removesuffix(")\\Z").removesuffix(")\\z") if text else ""


def bracket_expression(bracket: str) -> str:
    found = []
    for part in bracket[1:-1].split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            return f"[{bracket[1:-1]}]"  # a shell's set of characters
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return f"(?:{'|'.join(found)})"


def numbers(value: Any, where: str) -> list[int]:
    """3, "1-4,7" or [1, 2, "4-6"] as a list of numbers."""
    found: list[int] = []
    for part in split_list(value):
        match = RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UserError(f"{where}={value!r}: write numbers and ranges such as 3, '1-4,7' or [1, 2]")
        found += range(first, last + 1)
    return found


def split_list(value: Any) -> list[str]:
    """A list, or text with commas outside of brackets, as a list of texts."""
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else re.split(r",(?![^\[]*\])", str(value))
    return [str(part).strip() for part in parts]


def gpu_names(value: Any, where: str) -> tuple[str, ...]:
    """[0, 1] or "0,1" as what CUDA_VISIBLE_DEVICES lists; [] for none."""
    names = tuple(name for name in split_list(value) if name)
    for name in names:
        if not (name.isdigit() or name.startswith(("GPU-", "MIG-"))):
            raise UserError(f"{where}={value!r}: list GPUs by number or by UUID (GPU-...), as [0, 1]; [] for none")
    return names


def count(value: Any, where: str, least: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise UserError(f"{where}={value!r}: write a whole number, {least} or more")
    return value
