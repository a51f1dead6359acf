"""A job: what rank 0 hands on to all ranks, and all that they see of Hydra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One run to do: a resolved plain config, and the same as YAML text for the run directory."""

    config: dict[str, Any]
    text: str
