"""The field table: names, shapes and dtypes of a trajectory, written down once.

A trajectory holds N lanes of T steps, lane-major. It is allocated from the table, gathered by the table, archived
and read back by the table. A batch is the same with N summed over the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from mpirl.specs import ArraySpec, Specs, StepType


@dataclass(frozen=True)
class Field:
    """One field: `shape` and `dtype` of one lane's part."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of one lane."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """What a run's trajectories look like: T steps, frames of context, recurrent state, and the arrays of every field.

    `context` is the number of frames put in front of o_0 so that stacks of context + 1 frames can be formed.
    `extras` are per-observation arrays that the algorithm asks the policy for (such as `value`).
    """

    specs: Specs
    steps: int
    context: int = 0
    core: int = 0
    extras: Mapping[str, ArraySpec] = field(default_factory=dict)

    def table(self) -> dict[str, Field]:
        """The field table. Shapes leave out the leading lane axis N."""
        T = self.steps
        table = {name: Field((self.context + T + 1, *spec.shape), spec.dtype) for name, spec in self.specs.observation.items()}
        table |= {
            "step_type": Field((T + 1,), "uint8"),
            "action": Field((T, *self.specs.action.shape), self.specs.action.dtype),
            "log_prob": Field((T,), "float32"),
            "reward": Field((T,), "float32"),
            "discount": Field((T,), "float32"),
            "core": Field((self.core,), "float32"),
            "episode": Field((T + 1,), "int64"),
            "seed": Field((T + 1,), "int64"),
            "version": Field((), "int64"),
            "collected": Field((), "int64"),
        }
        for name, spec in {**self.specs.extras, **self.extras}.items():
            assert name not in table, f"extra {name!r} hides a field of the table"
            table[name] = Field((T + 1, *spec.shape), spec.dtype)
        return table


class Trajectory(Mapping[str, np.ndarray]):
    """N lanes x T steps of arrays by field name; every array is C-contiguous with N leading.

    NO_SEED in `seed` marks observations at which the lane was not seeded. `collected` counts, per lane, the true
    steps since the run's start, as the collecting rank counted them.
    """

    def __init__(self, layout: Layout, arrays: Mapping[str, np.ndarray]):
        self.layout = layout
        self._arrays = dict(arrays)
        self.num_lanes = len(self._arrays["step_type"])
        for name, entry in layout.table().items():
            array = self._arrays[name]
            assert array.shape == (self.num_lanes, *entry.shape), f"{name}: {array.shape} != {entry.shape}"
            assert array.dtype == entry.dtype, f"{name}: {array.dtype} != {entry.dtype}"
            assert array.flags.c_contiguous, f"{name} is not contiguous"

    @classmethod
    def allocate(
        cls, layout: Layout, num_lanes: int, empty: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.zeros
    ) -> Trajectory:
        """Allocate all fields for `num_lanes` lanes; `empty(shape, dtype)` may return pinned memory."""
        arrays = {name: empty((num_lanes, *entry.shape), np.dtype(entry.dtype)) for name, entry in layout.table().items()}
        return cls(layout, arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def observation(self) -> dict[str, np.ndarray]:
        """{field: [N, context + T + 1, ...]}."""
        return {name: self._arrays[name] for name in self.layout.specs.observation}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())


NO_SEED = -1


def is_step(step_type: np.ndarray) -> np.ndarray:
    """[N, T+1] step types -> [N, T] bool: True where slot t is a true step, False on the seam after LAST."""
    return step_type[:, :-1] != StepType.LAST
