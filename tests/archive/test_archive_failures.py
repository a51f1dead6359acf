"""Killed processes and full disks: a segment is whole or absent, and the error says what to do."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mpirl.archive import writer as writer_module
from mpirl.archive.journal import journals
from mpirl.archive.reader import read_archive, segments
from mpirl.archive.writer import SegmentWriter
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import Layout, Trajectory

LAYOUT = Layout(Specs({"observation": ArraySpec((64, 64), "uint8")}, ArraySpec((), "int64", num_values=2)), steps=15)

CHILD = """
import os, signal, sys
import numpy as np
from mpirl.archive.writer import SegmentWriter
sys.path.insert(0, {here!r})
from test_archive_failures import LAYOUT, noise

calls = 0
original = os.{function}
def fatal(*args):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
os.{function} = fatal
writer = SegmentWriter({directory!r}, LAYOUT, {{}}, segment_iterations=1)
for iteration in range(9):
    writer.write(iteration, 0, noise(iteration), [])
writer.flush()
"""


def noise(iteration):
    """A batch that does not compress, 64 KiB."""
    batch = Trajectory.allocate(LAYOUT, 1)
    batch["observation"][...] = np.random.default_rng(iteration).integers(0, 256, batch["observation"].shape)
    return batch


def assert_whole(directory, num_iterations):
    read = list(read_archive(directory))
    assert [iteration for iteration, *_ in read] == list(range(num_iterations))
    for iteration, _, batch in read:
        assert np.array_equal(batch["observation"], noise(iteration)["observation"])


@pytest.mark.parametrize(
    "function, at, num_whole, leaves_part",
    [("fsync", 5, 2, True), ("replace", 3, 2, True), ("fsync", 6, 3, False)],
    ids=["before the file is durable", "before the rename", "before the folder is durable"],
)
def test_kill_9_leaves_whole_segments_and_the_next_writer_recovers_the_open_one(tmp_path, function, at, num_whole, leaves_part):
    script = CHILD.format(here=os.path.dirname(__file__), function=function, at=at, directory=str(tmp_path))
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert_whole(tmp_path, num_whole)
    assert len(list(tmp_path.glob("*.part"))) == leaves_part and len(journals(tmp_path)) == 1
    writer = SegmentWriter(tmp_path, LAYOUT, {})
    assert_whole(tmp_path, 3)
    writer.write(3, 0, noise(3), [])
    writer.close()
    assert_whole(tmp_path, 4)
    assert not list(tmp_path.glob("*.part")) and not journals(tmp_path)


def test_a_program_that_ends_without_close_ends_and_keeps_everything(tmp_path):
    for attempt in range(2):  # a thread that dies inside h5py hangs some ends, not all
        script = f"""
            import sys
            from mpirl.archive.writer import SegmentWriter
            sys.path.insert(0, {os.path.dirname(__file__)!r})
            from test_archive_failures import LAYOUT, noise
            writer = SegmentWriter({str(tmp_path / str(attempt))!r}, LAYOUT, {{}}, segment_iterations=3)
            for iteration in range(7):
                writer.write(iteration, 0, noise(iteration), [])
            raise SystemExit(3)
        """
        assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=30).returncode == 3
        assert_whole(tmp_path / str(attempt), 7)


def test_no_segment_is_visible_before_it_is_complete(tmp_path, monkeypatch):
    visible = []
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (visible.append(len(segments(tmp_path))), original(descriptor)))
    writer = SegmentWriter(tmp_path, LAYOUT, {})
    writer.write(0, 0, noise(0), [])
    assert segments(tmp_path) == []
    writer.close()
    assert visible == [0, 1]  # the file's fsync, then the folder's


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_a_full_disk_is_a_clear_error_and_earlier_segments_are_intact(small_disk):
    writer = SegmentWriter(small_disk, LAYOUT, {}, segment_iterations=1)
    with pytest.raises(UserError, match=r"00000\d.(h5|open) .*No space left on device.* bytes free.*resume=true"):
        for iteration in range(9):
            writer.write(iteration, 0, noise(iteration), [])
            writer.flush()
    num_whole = len(segments(small_disk))
    assert num_whole >= 1 and not list(small_disk.glob("*.part"))
    assert_whole(small_disk, num_whole)
    writer.close()  # it has been told


def fail_from(monkeypatch, at):
    """From the fsync number `at` on, the disk is full."""
    calls, original = [], os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_failure_stops_every_later_write_and_blocks_none(tmp_path, monkeypatch):
    fail_from(monkeypatch, at=3)
    writer = SegmentWriter(tmp_path, LAYOUT, {}, segment_iterations=1, queue=1)
    with pytest.raises(UserError, match="000001.h5 .*No space left"):
        for iteration in range(50):
            writer.write(iteration, 0, noise(iteration), [])
    for _ in range(2):
        with pytest.raises(UserError, match="No space left"):
            writer.write(50, 0, noise(50), [])
        with pytest.raises(UserError, match="No space left"):
            writer.flush()
    assert writer.closed_steps == 15
    writer.close()
    assert_whole(tmp_path, 1)
    assert not list(tmp_path.glob("*.part"))


def test_close_tells_of_a_failure_that_nobody_has_heard_of(tmp_path, monkeypatch):
    fail_from(monkeypatch, at=1)
    writer = SegmentWriter(tmp_path, LAYOUT, {})
    writer.write(0, 0, noise(0), [])
    with pytest.raises(UserError, match="No space left"):
        writer.close()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["000000.open"]  # to be recovered when there is room


def test_a_bug_in_the_thread_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def broken(path, content):
        raise KeyError("a bug")

    monkeypatch.setattr(writer_module, "write_whole", broken)
    writer = SegmentWriter(tmp_path, LAYOUT, {})
    writer.write(0, 0, noise(0), [])
    with pytest.raises(RuntimeError, match="the thread that writes the archive failed") as raised:
        writer.flush()
    assert isinstance(raised.value.__cause__, KeyError)
