"""The fields that a gather sends: arrays of lanes, by name."""

from __future__ import annotations

import numpy as np

from mpirl.transport.base import Arrays


def sent_names(arrays: Arrays | None) -> list[str] | None:
    """Names of the fields that have bytes to send, sorted."""
    return None if arrays is None else sorted(name for name in arrays if lane_bytes(arrays[name]))


def lane_bytes(array: np.ndarray) -> int:
    """Bytes of one lane."""
    return array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))


def checked(name: str, arrays: Arrays, num_lanes: int) -> np.ndarray:
    """The field, which has so many lanes and is contiguous."""
    array = arrays[name]
    assert array.shape[0] == num_lanes, f"field {name!r} has {array.shape[0]} lanes, expected {num_lanes}"
    assert array.flags.c_contiguous, f"field {name!r} is not C-contiguous"
    return array
