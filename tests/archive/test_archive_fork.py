"""A forked child brings to disk what the writer had taken, wherever the writer's thread was when its process was killed."""

import os
import signal
import threading
import traceback

import numpy as np

from mpirl.archive import journal, segment, writer
from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.archive.writer import SegmentWriter

TRACED = (writer.__file__, segment.__file__, journal.__file__)
ITERATIONS = 5
STRIDE = int(os.environ.get("MPIRL_STRIDE", 67))  # 1: every line, which takes a minute


class Death:
    """Forks and kills the process when the writer's thread comes to line number `line` of those that it runs in TRACED."""

    def __init__(self, line, result):
        self.line, self.lines, self.accepted, self.result, self.writer = line, 0, 0, result, None

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename not in TRACED or threading.current_thread().name != "archive":
            return None
        if event == "line" and self.writer:
            self.lines += 1
            if self.lines == self.line:
                self.fork()
        return self.trace

    def fork(self):
        wait, alive = os.pipe()
        accepted = self.accepted
        if os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            os.close(alive)
            os.read(wait, 1)
            self.writer.finish_after_fork()
            os.write(self.result, str(accepted).encode())
        except BaseException:
            os.write(self.result, traceback.format_exc().encode())
        finally:
            os._exit(0)


def write_until_death(death, directory, layout, batches):
    threading.settrace(death.trace)
    death.writer = SegmentWriter(directory, layout, {}, segment_iterations=2)
    for iteration, (batch, rows) in enumerate(batches):
        death.writer.write(iteration, 0, batch, rows)
        death.accepted += 1
    death.writer.close()


def archive_until_death(directory, layout, batches, line):
    """Write batches in a process that dies at `line`; what its child tells, "" if the process ended before that."""
    told, result = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            write_until_death(Death(line, result), directory, layout, batches)
        finally:
            os._exit(0)
    os.close(result)
    with open(told) as file:
        text = file.read()
    os.waitpid(process, 0)
    return text


def test_a_child_forked_at_any_line_of_the_writer_finishes_the_archive(tmp_path, simulation):
    batches = [simulation.batch(iteration) for iteration in range(ITERATIONS)]
    line, forks = 1, 0
    while told := archive_until_death(tmp_path / str(line), simulation.layout, batches, line):
        assert told.isdecimal(), told
        assert_holds(tmp_path / str(line), batches, at_least=int(told))
        line, forks = line + STRIDE, forks + 1
    assert forks > 5


def assert_holds(directory, batches, at_least):
    read = list(read_archive(directory)) if segments(directory) else []
    assert [iteration for iteration, *_ in read] == list(range(len(read)))
    assert at_least <= len(read) <= at_least + 1 and not journal.journals(directory)
    for (_, _, found), (expected, _) in zip(read, batches):
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    rows = []
    for path in segments(directory):
        with Segment(path) as opened:
            rows += [row["id"] for row in opened.episodes()]
    assert rows == [row["id"] for _, rows in batches[: len(read)] for row in rows]


def test_what_the_process_wrote_after_the_fork_is_not_written_again(tmp_path, simulation):
    process = SegmentWriter(tmp_path, simulation.layout, {}, segment_iterations=2)
    batches = [simulation.batch(iteration) for iteration in range(3)]
    for iteration in range(2):
        process.write(iteration, 0, *batches[iteration])
    process.write(2, 0, *batches[2])
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go)
            os.read(ready, 1)
            process.finish_after_fork()
        finally:
            os._exit(0)
    process.close()
    os.close(go)
    os.waitpid(child, 0)
    assert_holds(tmp_path, batches, at_least=3)
