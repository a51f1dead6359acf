"""Memory that processes of one host share, as arrays.

It has no name in any file system (memfd): it takes no room in /dev/shm, and is gone with the last process that uses it, however
that ends.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Mapping

import numpy as np

from mpirl.errors import UserError
from mpirl.trajectory import Field

ALIGNMENT = 64  # bytes; a field begins on a cache line of its own
KEY_BYTES = 16
MEND = "write wire.gather=direct"


class SharedMemory:
    """Zeroed memory of `size` bytes that other processes of this user and host can attach to by `address`, until it is closed.

    Raises UserError where it cannot be had.
    """

    def __init__(self, size: int):
        key = secrets.token_bytes(KEY_BYTES)
        self._file = open(os.memfd_create("mpirl"), "rb")
        number = self._file.fileno()
        try:
            os.posix_fallocate(number, 0, size + KEY_BYTES)  # taken now: later a lack of it would be a SIGBUS
            self.map = mmap.mmap(number, size + KEY_BYTES)
        except OSError as error:
            raise UserError(
                f"{size / 1e6:,.0f} MB of shared memory for the workers' trajectories cannot be had ({error.strerror}): "
                f"make fewer lanes or steps, or {MEND}"
            ) from error
        self.map[size:] = key
        self.address = (os.getpid(), number, key)

    def close(self) -> None:
        """No more processes can attach; those that have, and this one, keep the memory."""
        self._file.close()


def attach(address: tuple[int, int, bytes]) -> mmap.mmap:
    """The memory of another process on this host. Raises UserError if it is out of reach."""
    process, number, key = address
    try:
        file = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
        try:
            attached = mmap.mmap(file, os.fstat(file).st_size)
        finally:
            os.close(file)
        if attached[-KEY_BYTES:] != key:
            raise OSError(0, "another process has its number here")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the ranks of this host cannot share memory: process {process} is out of reach ({error}). "
            f"If they run in containers of their own, {MEND}"
        ) from error
    return attached


def memory_size(table: Mapping[str, Field], num_lanes: int) -> int:
    """Bytes of all fields, each padded to ALIGNMENT."""
    return sum(_padded(field.nbytes * num_lanes) for field in table.values())


def views(memory: mmap.mmap, table: Mapping[str, Field], num_lanes: int) -> dict[str, np.ndarray]:
    """The fields in the memory, {name: [num_lanes, ...]}."""
    arrays, offset = {}, 0
    for name, field in table.items():
        shape = (num_lanes, *field.shape)
        arrays[name] = np.ndarray(shape, field.dtype, memory, offset)
        offset += _padded(field.nbytes * num_lanes)
    return arrays


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
