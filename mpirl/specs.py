"""What emulators consume and produce: shapes, dtypes and bounds of every array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from mpirl.errors import UserError


class StepType(IntEnum):
    """Where an observation stands in its episode."""

    FIRST = 0
    MID = 1
    LAST = 2


@dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and bounds of one array of one lane at one step.

    `num_values` is set for a discrete quantity with values 0 .. num_values - 1 (shape (), an integer dtype).
    `low` and `high` are None (unbounded), or nested tuples/floats that broadcast to `shape`.
    """

    shape: tuple[int, ...]
    dtype: str
    num_values: int | None = None
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        if self.num_values is not None and (self.shape != () or not self.is_integer or self.num_values < 1):
            raise UserError(
                f"a discrete ArraySpec needs shape (), an integer dtype and num_values >= 1, "
                f"got shape {self.shape}, dtype {self.dtype}, num_values {self.num_values}"
            )

    @property
    def is_discrete(self) -> bool:
        return self.num_values is not None

    @property
    def is_integer(self) -> bool:
        return np.issubdtype(np.dtype(self.dtype), np.integer)

    @property
    def nbytes(self) -> int:
        """Bytes of one value."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Specs:
    """Everything the rest of mpirl knows about an emulator.

    `observation` maps field names to specs: {"observation": spec} for a plain array,
    {"observation.camera": spec, "observation.speed": spec} for a dict observation.
    `extras` are arrays that come with every observation, e.g. {"lives": ArraySpec((), "int32")}.
    """

    observation: Mapping[str, ArraySpec]
    action: ArraySpec
    extras: Mapping[str, ArraySpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.observation:
            if name != "observation" and not name.startswith("observation."):
                raise UserError(f"observation field {name!r}: write 'observation' or 'observation.<key>'")
        if not self.observation:
            raise UserError("Specs need at least one observation field")


def bound_of(bound: np.ndarray) -> Any:
    """A bound as ArraySpec writes it: None if all infinite, a number if all equal, else nested tuples."""
    if np.all(np.isinf(bound)):
        return None
    if np.all(bound == bound.flat[0]):
        return float(bound.flat[0])
    return _tuples(bound.tolist())


def _tuples(values: Any) -> Any:
    return tuple(_tuples(value) for value in values) if isinstance(values, list) else float(values)


def observation_fields(observation: Any, prefix: str = "observation") -> dict[str, Any]:
    """Flatten an array or a (nested) mapping of arrays to {field name: array}."""
    if not isinstance(observation, Mapping):
        return {prefix: observation}
    fields: dict[str, Any] = {}
    for key, value in observation.items():
        fields.update(observation_fields(value, f"{prefix}.{key}"))
    return fields
