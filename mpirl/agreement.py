"""Agreement at start-up: a mistake that some ranks meet is raised on all ranks alike, so that none is left waiting."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mpirl.errors import AgreedError, UserError
from mpirl.transport.base import Group

T = TypeVar("T")


def agree(group: Group, make: Callable[[], T], describe: Callable[[T], Any] = lambda made: None) -> tuple[T, list[Any]]:
    """* Make something on every rank; this rank's, and all ranks' descriptions. If one rank fails, all raise AgreedError."""
    made, failure = None, None
    try:
        made = make()
    except UserError as error:
        failure = (str(error), "")
    except Exception as error:
        failure = (f"{type(error).__name__}: {error}", traceback.format_exc())
    reports = group.exchange((group.host, None if failure else describe(made), failure))
    failures = {rank: (host, *failed) for rank, (host, _, failed) in enumerate(reports) if failed}
    if failures:
        raise AgreedError(agreed_message(failures, group.size))
    return made, [description for _, description, _ in reports]


def agreed_message(failures: Mapping[int, tuple[str, str, str]], size: int) -> str:
    """One message for all ranks' failures: each text once, with the ranks that met it, and the first traceback if any."""
    ranks_of: dict[str, list[str]] = {}
    for rank, (host, text, _) in failures.items():
        ranks_of.setdefault(text, []).append(f"{rank} on {host}")
    if len(ranks_of) == 1 and len(failures) >= size - 1:
        message = next(iter(ranks_of))
    else:
        message = "\n".join(f"rank {', '.join(ranks)}: {text}" for text, ranks in ranks_of.items())
    details = next(((rank, host, details) for rank, (host, _, details) in failures.items() if details), None)
    return message if details is None else f"rank {details[0]} on host {details[1]} failed:\n{details[2]}"
