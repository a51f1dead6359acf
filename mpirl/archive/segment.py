"""One segment under construction: an HDF5 file in memory that becomes a file on disk whole, or not at all.

libhdf5 ends the process when the disk is full, and a file that it was writing when the process was killed may not
open again. So it never writes to disk here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mpirl
from mpirl.archive.format import EPISODE_COLUMNS, FORMAT, FORMAT_VERSION, chunk_shape, filters, layout_to_attributes
from mpirl.errors import UserError
from mpirl.trajectory import Field, Layout, Trajectory

# Lets attributes exceed 64 KiB (bounds of every pixel do); every HDF5 since 1.8 reads it.
LIBVER = ("v108", "v108")
GROWTH = 1 << 20  # bytes by which the file in memory grows


class OpenSegment:
    """A segment that takes batches of `num_lanes` lanes until it is finished; `header` is JSON text."""

    def __init__(self, path: Path, layout: Layout, num_lanes: int, header: str, compression: str, level: int):
        self.path = path
        # The path only names the file in memory, and two open ones must not share a name.
        self._file = h5py.File(path, "w", driver="core", backing_store=False, block_size=GROWTH, libver=LIBVER)
        self._file.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "mpirl_version": mpirl.__version__,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "compression": compression,
                "header": header,
                **layout_to_attributes(layout),
            }
        )
        self._datasets = {
            name: _create_dataset(self._file, name, num_lanes, entry, filters(compression, level))
            for name, entry in layout.table().items()
        }
        self.iterations: list[int] = []
        self._learner_versions: list[int] = []
        self._episodes: list[Mapping[str, Any]] = []

    def append(self, iteration: int, version: int, batch: Trajectory, episodes: list[Mapping[str, Any]]) -> None:
        """Compress a batch into the segment."""
        index = len(self.iterations)
        for name, dataset in self._datasets.items():
            dataset.resize(index + 1, axis=0)
            dataset[index] = batch[name]
        self.iterations.append(iteration)
        self._learner_versions.append(version)
        self._episodes.extend(episodes)

    @property
    def nbytes(self) -> int:
        """Bytes that the compressed fields take so far."""
        self._file.flush()  # compresses what is still in HDF5's cache
        return sum(dataset.id.get_storage_size() for dataset in self._datasets.values())

    def finish(self) -> bytes:
        """The content of the file. The segment is closed."""
        self._file["iteration"] = np.array(self.iterations, "int64")
        self._file["learner_version"] = np.array(self._learner_versions, "int64")
        group = self._file.create_group("episodes")
        for name, kind in EPISODE_COLUMNS.items():
            dtype = h5py.string_dtype() if kind == "str" else np.dtype(kind)
            column = group.create_dataset(name, (len(self._episodes),), dtype)
            if self._episodes:
                column[:] = [row[name] for row in self._episodes]
        self._file.flush()
        image = self._file.id.get_file_image()
        self._file.close()
        return image


def write_whole(path: Path, content: bytes) -> None:
    """Make a durable file at `path`, or none: a process killed meanwhile leaves at most `path`.part."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(
            f"cannot write the archive segment {path} ({len(content):,} bytes): {error.strerror or error}. "
            f"Its file system has {_free(path.parent)} bytes free. Earlier segments are intact. "
            "Make room there, then continue the run with resume=true"
        ) from error


def sync_folder(directory: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_dataset(file: h5py.File, name: str, num_lanes: int, entry: Field, compressed: Mapping[str, Any]) -> h5py.Dataset:
    shape = (num_lanes, *entry.shape)
    return file.create_dataset(
        name,
        (0, *shape),
        entry.dtype,
        maxshape=(None, *(size or None for size in shape)),  # HDF5 allows chunks of an empty axis only if it may grow
        chunks=chunk_shape(num_lanes, entry),
        shuffle=bool(compressed) and np.dtype(entry.dtype).itemsize > 1,
        **compressed,
    )


def _free(directory: Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free:,}"
    except OSError:
        return "an unknown number of"
