"""The journal of the open segment: what a killed process had archived since its last closed segment, and its recovery.

`NNNNNN.open` beside the segments holds records: the segment before its first batch, then one for every iteration, with the
chunks as they were compressed. Records are appended and left to the operating system, which outlives the process. When the
segment is closed, its journal goes.

A record is its length (uint64) and the CRC-32 (uint32) of what follows. An iteration's is the length (uint32) of JSON text,
this text (iteration, learner version, episodes, and name, offset, mask and length of every chunk), and the chunks. All
numbers are little-endian.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from mpirl.archive.segment import Chunk, OpenSegment, Record, disk_error, write_whole
from mpirl.errors import UserError

MAGIC = b"mpirl.journal.1\n"
HEAD, META = struct.Struct("<QI"), struct.Struct("<I")


class Journal:
    """The journal of the segment that will be at `path`; `image` is its snapshot before its first batch."""

    def __init__(self, path: Path, image: bytes):
        self.path = journal_of(path)
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk_error(f"the archive's journal {self.path}", self.path, len(image), error) from error
        with suppress(OSError):  # there are file systems without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write(MAGIC + _framed(image))

    def append(self, record: Record) -> None:
        """Add an iteration. Raises UserError on a full disk; what was added before stays."""
        self._write(_framed(_encoded(record)))

    def close(self) -> None:
        """Let others have the journal, where the segment could not be closed."""
        os.close(self._file)

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise disk_error(f"the archive's journal {self.path}", self.path, len(content), error) from error


class Recovered(NamedTuple):
    """What a journal held. segment: where it is now, None if there was nothing. torn: whether its last record was cut off."""

    journal: Path
    segment: Path | None
    iterations: list[int]
    torn: bool


def journal_of(segment: Path) -> Path:
    return segment.with_suffix(".open")


def journals(directory: Path) -> list[Path]:
    """The journals in an archive, oldest first."""
    found = [path for path in directory.iterdir() if re.fullmatch(r"\d{6,}\.open", path.name)]
    return sorted(found, key=lambda path: int(path.stem))


def recover(directory: str | Path) -> list[Recovered]:
    """Turn the journals that killed processes left into segments.

    Raises UserError for the journal of a writer that is still at work, and on a full disk; the journal then stays.
    """
    found = []
    for path in journals(Path(directory)):
        with open(path, "rb") as file:
            _lock(file.fileno(), path)
            if path.with_suffix(".h5").exists():  # it was closed, and only the journal's end was missing
                path.unlink()
                continue
            found.append(_recover(path, file.read()))
    return found


def _recover(path: Path, content: bytes) -> Recovered:
    parts = list(_parts(content))
    torn = sum(map(len, parts)) + HEAD.size * len(parts) + len(MAGIC) != len(content)
    target, iterations = path.with_suffix(".h5"), []
    if len(parts) > 1:
        with closing(OpenSegment.from_image(target, bytes(parts[0]))) as segment:
            for part in parts[1:]:
                segment.restore(_decoded(part))
            iterations = segment.iterations
            write_whole(target, segment.image())
    path.unlink()
    return Recovered(path, target if iterations else None, iterations, torn)


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{path} is in use by a run that is still going: it closes its segments itself") from error
    except OSError:
        pass  # no locks here


def _framed(content: bytes) -> bytes:
    return HEAD.pack(len(content), zlib.crc32(content)) + content


def _parts(content: bytes) -> Iterator[memoryview]:
    """The whole records, up to the first that is not."""
    rest = memoryview(content)
    if rest[: len(MAGIC)] != MAGIC:
        return
    rest = rest[len(MAGIC) :]
    while len(rest) >= HEAD.size:
        length, checksum = HEAD.unpack_from(rest)
        part, rest = rest[HEAD.size : HEAD.size + length], rest[HEAD.size + length :]
        if len(part) < length or zlib.crc32(part) != checksum:
            return
        yield part


def _encoded(record: Record) -> bytes:
    places = [[chunk.name, chunk.offset, chunk.mask, len(chunk.content)] for chunk in record.chunks]
    text = json.dumps([record.iteration, record.version, record.episodes, places]).encode()
    return b"".join([META.pack(len(text)), text, *(chunk.content for chunk in record.chunks)])


def _decoded(part: memoryview) -> Record:
    (length,) = META.unpack_from(part)
    iteration, version, episodes, places = json.loads(bytes(part[META.size : META.size + length]))
    rest, chunks = part[META.size + length :], []
    for name, offset, mask, size in places:
        chunks.append(Chunk(name, tuple(offset), mask, bytes(rest[:size])))
        rest = rest[size:]
    return Record(iteration, version, episodes, chunks)
