"""The writer: segments rotate, batches are staged, numbering goes on, a resume puts later segments aside."""

import threading
import time

import numpy as np
import pytest

from mpirl.archive import writer as writer_module
from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.archive.resume import resume_at
from mpirl.archive.writer import SegmentWriter


def write(writer, simulation, iterations):
    for iteration in iterations:
        writer.write(iteration, 0, *simulation.batch(iteration))


def iterations_by_segment(directory):
    result = []
    for path in segments(directory):
        with Segment(path) as segment:
            result.append(segment.iterations.tolist())
    return result


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_segments_rotate_by_iterations(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {}, segment_iterations=2)
    write(writer, simulation, range(5))
    writer.close()
    assert iterations_by_segment(tmp_path) == [[0, 1], [2, 3], [4]]


def test_segments_rotate_by_bytes(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {}, segment_bytes=1)
    write(writer, simulation, range(2))
    writer.close()
    assert iterations_by_segment(tmp_path) == [[0], [1]]


def test_an_old_segment_is_closed_though_no_batch_comes(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {}, segment_seconds=0.2)
    write(writer, simulation, [0])
    wait_for(lambda: segments(tmp_path))
    writer.close()
    assert iterations_by_segment(tmp_path) == [[0]]


def test_flush_brings_everything_to_disk_and_counts_true_steps(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {})
    write(writer, simulation, range(3))
    assert writer.steps == simulation.num_steps < 3 * 2 * 7  # seams are not steps
    assert writer.flush() == simulation.num_steps
    assert iterations_by_segment(tmp_path) == [[0, 1, 2]]
    write(writer, simulation, [3])
    assert writer.flush() == writer.steps == writer.closed_steps == simulation.num_steps
    writer.close()


def test_nothing_written_leaves_no_segment(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {})
    assert writer.flush() == 0
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_the_batch_may_be_overwritten_after_write(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {})
    batch, rows = simulation.batch(0)
    expected = {name: array.copy() for name, array in batch.items()}
    writer.write(0, 0, batch, rows)
    for array in batch.values():
        array[...] = 0
    writer.close()
    (_, _, read), = read_archive(tmp_path)
    assert all((read[name] == expected[name]).all() for name in expected)


def test_a_full_queue_blocks_and_drops_nothing(tmp_path, simulation, monkeypatch):
    disk_is_fast = threading.Event()
    original = writer_module.write_whole
    monkeypatch.setattr(writer_module, "write_whole", lambda *args: (disk_is_fast.wait(), original(*args)))
    writer = SegmentWriter(tmp_path, simulation.layout, {}, segment_iterations=1, queue=2)
    done = []
    program = threading.Thread(target=lambda: [done.append(write(writer, simulation, [i])) for i in range(8)])
    program.start()
    wait_for(lambda: len(done) == 4)  # one on its way to the disk, one that waits to be compressed, two in the queue
    time.sleep(0.2)
    assert len(done) == 4 and not segments(tmp_path)
    disk_is_fast.set()
    program.join()
    writer.close()
    assert iterations_by_segment(tmp_path) == [[i] for i in range(8)]


def test_numbering_goes_on_and_half_written_files_are_removed(tmp_path, simulation):
    for iterations in ([0, 1], [2]):
        (tmp_path / "000001.h5.part").write_bytes(b"half")
        writer = SegmentWriter(tmp_path, simulation.layout, {})
        write(writer, simulation, iterations)
        writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.h5", "000001.h5"]
    assert iterations_by_segment(tmp_path) == [[0, 1], [2]]


def test_two_writers_in_one_process_do_not_meet(tmp_path, simulation):
    writers = [SegmentWriter(tmp_path / name, simulation.layout, {}) for name in "ab"]
    for writer in writers:
        write(writer, simulation, [0])
    for writer in writers:
        writer.close()
    assert iterations_by_segment(tmp_path / "a") == iterations_by_segment(tmp_path / "b") == [[0]]


def test_resume_puts_later_segments_aside(tmp_path, simulation):
    assert resume_at(tmp_path / "nowhere", 3) == 0
    for discarded in ("discarded-1", "discarded-2"):
        writer = SegmentWriter(tmp_path, simulation.layout, {}, segment_iterations=2)
        write(writer, simulation, range(len(segments(tmp_path)) * 2, 6))
        writer.close()
        assert resume_at(tmp_path, 1) == 4
        assert iterations_by_segment(tmp_path) == [[0, 1]]
        assert iterations_by_segment(tmp_path / discarded) == [[2, 3], [4, 5]]
    assert resume_at(tmp_path, 1) == 0


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_resume_inside_a_segment_leaves_its_beginning(tmp_path, simulate, layout, compression):
    simulation = simulate(layout)
    writer = SegmentWriter(tmp_path, layout, {"name": "a"}, compression, segment_iterations=3)
    write(writer, simulation, range(9))
    writer.close()
    before, later = list(read_archive(tmp_path)), (tmp_path / "000001.h5").read_bytes()
    with Segment(tmp_path / "000001.h5") as segment:
        rows = [row for row in segment.episodes() if row["end_iteration"] <= 4]
    assert resume_at(tmp_path, 4) == 4
    assert iterations_by_segment(tmp_path) == [[0, 1, 2], [3, 4]]
    for (iteration, version, batch), (_, _, expected) in zip(read_archive(tmp_path), before):
        assert version == 0 and all(np.array_equal(batch[name], expected[name]) for name in expected)
    with Segment(tmp_path / "000001.h5") as segment:
        assert segment.episodes() == rows and segment.header == {"name": "a"} and segment.compression == compression
    assert iterations_by_segment(tmp_path / "discarded-1") == [[3, 4, 5], [6, 7, 8]], "nothing is lost"
    assert (tmp_path / "discarded-1/000001.h5").read_bytes() == later
    assert resume_at(tmp_path, 4) == 0
