"""The journal: what a killed process had archived comes back bit for bit, and nothing that is torn or wrong."""

import errno
import os
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest

from mpirl.archive import journal as journal_module
from mpirl.archive.journal import journals, recover
from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.archive.resume import resume_at
from mpirl.archive.writer import SegmentWriter
from mpirl.errors import UserError


def kill_after(directory, simulation, num_iterations, layout=None, **settings):
    """Write batches in a process that is killed when the last of them is in the journal; what it was given."""
    batches = [simulation.batch(iteration) for iteration in range(num_iterations)]
    child = os.fork()
    if child == 0:
        try:
            writer = SegmentWriter(directory, simulation.layout, {"name": "a"}, **settings)
            for iteration, (batch, rows) in enumerate(batches):
                writer.write(iteration, 10 + iteration, batch, rows)
            while not writer._staging.queue:  # it comes back when its batch is in the journal
                time.sleep(0.001)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    return batches


def assert_holds(directory, batches):
    read = list(read_archive(directory))
    assert [entry[:2] for entry in read] == [(iteration, 10 + iteration) for iteration in range(len(batches))]
    for (_, _, found), (expected, _) in zip(read, batches):
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    ids = []
    for path in segments(directory):
        with Segment(path) as segment:
            ids += [row["id"] for row in segment.episodes()]
            assert segment.header == {"name": "a"}
    assert ids == [row["id"] for _, rows in batches for row in rows]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_killed_writers_iterations_come_back_bit_for_bit(tmp_path, layout, simulate, compression):
    if compression == "zstd":
        pytest.importorskip("hdf5plugin")
    batches = kill_after(tmp_path, simulate(layout), 7, segment_iterations=4, compression=compression)
    assert len(segments(tmp_path)) == 1 and len(journals(tmp_path)) == 1
    (found,) = recover(tmp_path)
    assert (found.iterations, found.torn, found.segment) == ([4, 5, 6], False, tmp_path / "000001.h5")
    assert_holds(tmp_path, batches)
    assert not journals(tmp_path) and recover(tmp_path) == []


def test_the_next_writer_and_a_resume_recover_by_themselves(tmp_path, simulation):
    batches = kill_after(tmp_path / "a", simulation, 5)
    SegmentWriter(tmp_path / "a", simulation.layout, {}).close()
    assert_holds(tmp_path / "a", batches)
    kill_after(tmp_path / "b", simulation, 5)
    assert resume_at(tmp_path / "b", 2) == 2 and not journals(tmp_path / "b")
    assert [iteration for iteration, *_ in read_archive(tmp_path / "b")] == [0, 1, 2]


def test_wherever_a_journal_is_cut_off_the_iterations_before_come_back(tmp_path, simulation):
    batches = kill_after(tmp_path, simulation, 4)
    (path,) = journals(tmp_path)
    whole = path.read_bytes()
    counts = []
    for length in [*range(0, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        (found,) = recover(tmp_path)
        counts.append(len(found.iterations))
        assert found.torn and (found.segment is None) == (counts[-1] == 0)
        if found.segment:
            assert_holds(tmp_path, batches[: counts[-1]])
            found.segment.unlink()
        assert not list(tmp_path.iterdir())
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}


def test_a_changed_bit_ends_what_is_recovered(tmp_path, simulation):
    batches = kill_after(tmp_path, simulation, 4)
    (path,) = journals(tmp_path)
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    path.write_bytes(content)
    (found,) = recover(tmp_path)
    assert found.iterations == [0, 1, 2] and found.torn
    assert_holds(tmp_path, batches[:3])


def test_the_journal_of_a_writer_at_work_is_left_alone(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {"name": "a"})
    batches = [simulation.batch(0)]
    writer.write(0, 10, *batches[0])
    while not journals(tmp_path):
        time.sleep(0.01)
    with pytest.raises(UserError, match="000000.open is in use by a run that is still going"):
        recover(tmp_path)
    writer.close()
    assert_holds(tmp_path, batches)
    assert not journals(tmp_path)


def test_a_journal_whose_segment_was_closed_goes(tmp_path, simulation):
    batches = kill_after(tmp_path, simulation, 3)
    content = journals(tmp_path)[0].read_bytes()
    recover(tmp_path)
    (tmp_path / "000000.open").write_bytes(content)
    assert recover(tmp_path) == [] and not journals(tmp_path)
    assert_holds(tmp_path, batches)


@contextmanager
def full_after(monkeypatch, num_bytes):
    """A disk with so much room for journals, which takes the beginning of the write that is too large."""
    room, original = [num_bytes], os.write

    def write(file, content):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = content[: room[0]]
        room[0] -= len(part)
        return original(file, part)

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "write", write)
        yield


def test_a_full_disk_under_the_journal_is_a_clear_error_and_everything_before_is_recovered(tmp_path, simulation, monkeypatch):
    batches = [simulation.batch(iteration) for iteration in range(50)]
    with full_after(monkeypatch, 150_000):
        writer = SegmentWriter(tmp_path, simulation.layout, {"name": "a"}, segment_iterations=3)
        with pytest.raises(UserError, match=r"\.open .*No space left.*bytes free.*Earlier segments are intact.*resume=true"):
            for iteration, (batch, rows) in enumerate(batches):
                writer.write(iteration, 10 + iteration, batch, rows)
                writer._jobs.join()
        writer.close()
    num_closed = 3 * len(segments(tmp_path))
    assert_holds(tmp_path, batches[:num_closed])
    (found,) = recover(tmp_path)
    assert found.torn
    assert_holds(tmp_path, batches[: num_closed + len(found.iterations)])


def test_the_journal_takes_hardly_more_than_the_compressed_chunks(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {})
    sizes = []
    for iteration in range(5):
        writer.write(iteration, 0, *simulation.batch(iteration))
        writer._jobs.join()
        sizes.append((journals(tmp_path)[0].stat().st_size, writer._segment.nbytes))
    writer.close()
    (first, chunks), (last, more_chunks) = sizes[0], sizes[-1]
    assert last - first < more_chunks - chunks + 4 * 4000 and more_chunks > chunks
