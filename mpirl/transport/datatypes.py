"""MPI datatypes of lanes. MPI counts in 32-bit integers: counts are lanes here, and a lane may be larger than 2 GiB itself.

`MPI` is the module mpi4py.MPI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LARGEST = 2**30  # bytes that are counted one by one


def lane_type(MPI: Any, num_bytes: int, largest: int = LARGEST) -> Any:
    """The committed datatype of `num_bytes` contiguous bytes; above `largest`, of blocks of that size and a rest."""
    num_blocks, rest = divmod(num_bytes, largest)
    if not num_blocks:
        return MPI.BYTE.Create_contiguous(num_bytes).Commit()
    block = MPI.BYTE.Create_contiguous(largest)
    whole = MPI.Datatype.Create_struct([num_blocks, rest], [0, num_blocks * largest], [block, MPI.BYTE])
    block.Free()
    return whole.Commit()


def rows_type(lane: Any, rows: Sequence[slice]) -> Any:
    """The committed datatype of some rows of an array whose rows are lanes of the datatype `lane`."""
    lengths, starts = [part.stop - part.start for part in rows], [part.start for part in rows]
    return lane.Create_indexed(lengths, starts).Commit()
