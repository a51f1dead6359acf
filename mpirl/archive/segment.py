"""One segment under construction: an HDF5 file in memory that becomes a file on disk whole, or not at all.

libhdf5 ends the process when the disk is full, and a file that it was writing when the process was killed may not
open again. So it never writes to disk here.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

import mpirl
from mpirl.archive.format import (
    EPISODE_COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    OWN_NAMES,
    chunk_shape,
    filters,
    layout_to_attributes,
    stored_table,
    table_from_attributes,
    table_to_json,
)
from mpirl.errors import UserError
from mpirl.files import write_atomically
from mpirl.trajectory import Field, Layout

# Lets attributes exceed 64 KiB (bounds of every pixel do); every HDF5 since 1.8 reads it.
LIBVER = ("v108", "v108")
GROWTH = 1 << 20  # bytes by which the file in memory grows
PIECE = 1 << 20  # bytes that are compressed in one go


class Chunk(NamedTuple):
    """A compressed chunk of the dataset `name`: `offset` without the iterations' axis, and HDF5's mask of filters left out."""

    name: str
    offset: tuple[int, ...]
    mask: int
    content: bytes


class Record(NamedTuple):
    """One iteration as a segment holds it. episodes: rows of the episode table."""

    iteration: int
    version: int
    episodes: list[Mapping[str, Any]]
    chunks: list[Chunk]


class Column:
    """A field's dataset [I, N, ...], through the lower layer of h5py: the upper takes several times as long for few bytes."""

    def __init__(self, name: str, dataset: h5py.Dataset):
        self.name, self.id, self.chunks = name, dataset.id, dataset.chunks
        self._shape = dataset.shape[1:]
        self._offsets = list(itertools.product(*(range(0, size, step) for size, step in zip(self._shape, self.chunks[1:]))))

    def extend(self, length: int) -> None:
        self.id.set_extent((length, *self._shape))

    def write(self, index: int, lanes: slice, array: np.ndarray) -> None:
        """Let HDF5 compress these lanes of an array [N, ...] into iteration number `index` of the segment."""
        part = np.ascontiguousarray(array[lanes])
        if part.size:
            place = self.id.get_space()
            place.select_hyperslab((index, lanes.start, *(0 for _ in part.shape[1:])), (1, *part.shape))
            self.id.write(h5py.h5s.create_simple((1, *part.shape)), place, part)

    def read(self, index: int) -> Iterator[Chunk]:
        """The chunks of iteration number `index`."""
        for offset in self._offsets:
            mask, content = self.id.read_direct_chunk((index, *offset))
            yield Chunk(self.name, offset, mask, content)


class OpenSegment:
    """A segment that takes batches of `num_lanes` lanes until it is finished.

    header, keeping: JSON text for these attributes. content: "all" or "actions", the fields that are stored.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        num_lanes: int,
        header: str,
        compression: str,
        level: int,
        content: str = "all",
        keeping: str = "{}",
    ):
        table = stored_table(layout, content)
        self._begin(path, _new_file(path))
        self._file.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "mpirl_version": mpirl.__version__,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "compression": compression,
                "content": content,
                "keeping": keeping,
                "header": header,
                "table": table_to_json(table),
                **layout_to_attributes(layout),
            }
        )
        for name, entry in table.items():
            dataset = _create_dataset(self._file, name, num_lanes, entry, filters(compression, level))
            self._columns[name] = Column(name, dataset)

    @classmethod
    def from_image(cls, path: Path, image: bytes) -> OpenSegment:
        """One that is as another was when its snapshot was taken, before the first batch."""
        segment = cls.__new__(cls)
        segment._begin(path, _file_of(path, image))
        names = table_from_attributes(segment._file.attrs)
        segment._columns.update({name: Column(name, segment._file[name]) for name in names})
        return segment

    def _begin(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        self._columns: dict[str, Column] = {}
        self._entries: list[tuple[int, int, list[Mapping[str, Any]]]] = []  # iteration, learner version, episodes
        self.nbytes = 0
        """Bytes that the compressed fields take so far."""

    def append(
        self,
        iteration: int,
        version: int,
        batch: Mapping[str, np.ndarray],
        episodes: list[Mapping[str, Any]],
        give_way: Callable[[], None] = lambda: None,
    ) -> Record:
        """Compress a batch into the segment. One that was cut off by a fork is begun again by the next.

        give_way is called every few milliseconds: h5py's lock, which a fork waits for, is held for no longer.
        """
        index, chunks = len(self._entries), []
        for name, column in self._columns.items():
            column.extend(index + 1)
            array = batch[name]
            for lanes in _pieces(column.chunks, array):
                give_way()
                column.write(index, lanes, array)
            give_way()
            chunks += column.read(index)
        return self._enter(Record(iteration, version, episodes, chunks))

    def restore(self, record: Record) -> None:
        """Take what `append` returned."""
        index = len(self._entries)
        for column in self._columns.values():
            column.extend(index + 1)
        for chunk in record.chunks:
            self._columns[chunk.name].id.write_direct_chunk((index, *chunk.offset), chunk.content, chunk.mask)
        self._enter(record)

    def _enter(self, record: Record) -> Record:
        self._entries.append(record[:3])  # at once: from here on, the batch is in
        self.nbytes += sum(len(chunk.content) for chunk in record.chunks)
        return record

    @property
    def iterations(self) -> list[int]:
        return [iteration for iteration, *_ in self._entries]

    def image(self) -> bytes:
        """The content of the file as it is now, with all batches that are in."""
        for name in OWN_NAMES:
            if name in self._file:  # made by a thread that a fork cut off
                del self._file[name]
        self._file["iteration"] = np.array(self.iterations, "int64")
        self._file["learner_version"] = np.array([version for _, version, _ in self._entries], "int64")
        rows = [row for *_, episodes in self._entries for row in episodes]
        group = self._file.create_group("episodes")
        for name, kind in EPISODE_COLUMNS.items():
            dtype = h5py.string_dtype() if kind == "str" else np.dtype(kind)
            column = group.create_dataset(name, (len(rows),), dtype)
            if rows:
                column[:] = [row[name] for row in rows]
        return self.snapshot()

    def snapshot(self) -> bytes:
        """The content of the file without what `image` adds, for `from_image`."""
        self._file.flush()
        return self._file.id.get_file_image()

    def close(self) -> None:
        """Give the memory back."""
        self._file.close()


def write_whole(path: Path, content: bytes) -> None:
    """Make a durable file at `path`, or none: a process killed meanwhile leaves at most `path`.part."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise disk_error(f"the archive's {path}", path, len(content), error) from error


def disk_error(what: str, path: Path, num_bytes: int, error: OSError) -> UserError:
    """What to tell of a file that could not be written."""
    return UserError(
        f"cannot write {what} ({num_bytes:,} bytes): {error.strerror or error}. "
        f"Its file system has {_free(path.parent)} bytes free. Earlier segments are intact. "
        "Make room there, then continue the run with resume=true"
    )


def _new_file(path: Path) -> h5py.File:
    # Chunks are written once and whole: without a cache they are compressed there and then, not in a flush of many.
    settings = {"driver": "core", "backing_store": False, "block_size": GROWTH, "libver": LIBVER, "rdcc_nbytes": 0}
    return h5py.File(_name_in_memory(path), "w", **settings)


def _file_of(path: Path, image: bytes) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(GROWTH, False)
    access.set_file_image(image)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    return h5py.File(h5py.h5f.open(_name_in_memory(path).encode(), h5py.h5f.ACC_RDWR, access))


def _name_in_memory(path: Path) -> str:
    """No two open files may share it; nor may a forked child's and what it inherited."""
    return f"{path}.{os.getpid()}"


def _pieces(chunks: tuple[int, ...], array: np.ndarray) -> Iterator[slice]:
    """The lanes of an array [N, ...] in pieces of about PIECE bytes, where chunks are of single lanes."""
    num_lanes = len(array)
    size = num_lanes if chunks[1] > 1 else max(1, num_lanes * PIECE // max(1, array.nbytes))
    for start in range(0, num_lanes, max(1, size)):
        yield slice(start, start + size)


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
