"""Following an archive that another process writes."""

import itertools
import os
import threading
import time

import pytest

from mpirl import rundir
from mpirl.archive import following
from mpirl.archive.following import follow, follow_segments
from mpirl.archive.resume import resume_at
from mpirl.archive.writer import SegmentWriter


def write(directory, simulation, iterations, pause=0.0):
    writer = SegmentWriter(directory, simulation.layout, {}, segment_iterations=2)
    for iteration in iterations:
        writer.write(iteration, 0, *simulation.batch(iteration))
        time.sleep(pause)
    writer.close()


def test_a_run_in_another_process_is_followed_to_its_end(tmp_path, simulation):
    child = os.fork()
    if child == 0:
        try:
            time.sleep(0.1)
            write(tmp_path / "archive", simulation, range(7), pause=0.03)
            (tmp_path / "COMPLETED").write_text("done")
        finally:
            os._exit(0)
    read = [(iteration, batch["reward"].sum()) for iteration, _, batch in follow(tmp_path / "archive", timeout=20, poll=0.02)]
    os.waitpid(child, 0)
    assert read == [(iteration, simulation.batch(iteration)[0]["reward"].sum()) for iteration in range(7)]


def test_a_run_that_brings_nothing_more_is_given_up(tmp_path, simulation):
    write(tmp_path, simulation, range(2))
    followed = follow(tmp_path, timeout=0.1, poll=0.02)
    assert [next(followed)[0], next(followed)[0]] == [0, 1]
    with pytest.raises(TimeoutError, match="no new segment in .* for 0.1 seconds"):
        next(followed)
    with pytest.raises(TimeoutError):
        next(follow(tmp_path / "nowhere", timeout=0.05, poll=0.02))


def test_it_ends_on_request(tmp_path, simulation):
    write(tmp_path, simulation, range(2))
    unwanted = threading.Event()
    followed = follow(tmp_path, stop=unwanted.is_set, poll=0.02)
    assert [iteration for iteration, *_ in itertools.islice(followed, 2)] == [0, 1]
    unwanted.set()
    assert list(followed) == []


def test_iterations_that_a_resume_plays_again_come_again(tmp_path, simulation):
    write(tmp_path, simulation, range(4))
    followed = follow_segments(tmp_path, timeout=5, poll=0.02)
    assert [next(followed).name for _ in range(2)] == ["000000.h5", "000001.h5"]
    resume_at(tmp_path, 1)
    write(tmp_path, simulation, [2, 3])
    assert next(followed).name == "000001.h5"


def test_a_segment_that_was_deleted_meanwhile_is_left_out(tmp_path, simulation):
    write(tmp_path, simulation, range(6))
    followed = follow_segments(tmp_path, timeout=5, poll=0.02)
    next(followed)
    (tmp_path / "000001.h5").unlink()
    assert next(followed).name == "000002.h5"


def test_the_marker_is_the_runs():
    assert following.COMPLETED == rundir.COMPLETED
