"""Observations brought back: an archive of actions becomes the archive that it would have been, and no other."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from archived import CARTPOLE, CATCH, DQN, MACHADO, flip, record

from mpirl import replay
from mpirl.archive.journal import journals
from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.archive.writer import SegmentWriter
from mpirl.errors import UserError
from mpirl.reemulation import Emulators, verify
from mpirl.restoring import restore
from mpirl.rundir import RunDirectory
from mpirl.specs import StepType
from mpirl.stretches import survey
from mpirl.trajectory import NO_SEED, is_step

GONE = ("log_prob", "value")  # what no emulator knows


def both(tmp_path, emulator, **settings):
    """The same play archived in full, and with actions only."""
    return record(tmp_path / "full", emulator, **settings), record(tmp_path / "bare", emulator, content="actions", **settings)


def assert_equal(found, expected):
    found, expected = list(read_archive(found)), list(read_archive(expected))
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    for (_, _, restored), (_, _, original) in zip(found, expected):
        assert set(original) - set(restored) == {"value"} and np.isnan(restored["log_prob"]).all()
        for name in set(original) - set(GONE):
            assert np.array_equal(restored[name], original[name]), name


def rows(archive):
    found = []
    for path in segments(archive):
        with Segment(path) as segment:
            found += segment.episodes()
    return found


CASES = {
    "catch": (CATCH, {"context": 3, "lanes": (2, 1)}),
    "cartpole": (CARTPOLE, {"context": 1}),
    "one step an iteration": (CATCH, {"steps": 1, "iterations": range(1, 30), "context": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_restored_archive_is_the_one_with_observations(tmp_path, case):
    emulator, settings = CASES[case]
    full, bare = both(tmp_path, emulator, **settings)
    done = restore(bare / "archive", tmp_path / "restored")
    assert_equal(tmp_path / "restored", full / "archive")
    assert rows(tmp_path / "restored") == rows(full / "archive") and done.episodes == len(rows(full / "archive"))
    steps = sum(int(is_step(batch["step_type"]).sum()) for *_, batch in read_archive(full / "archive"))
    assert (done.unplayable, done.steps) == (0, steps)


@pytest.mark.atari
@pytest.mark.parametrize("protocol", [DQN, MACHADO], ids=["dqn", "machado"])
def test_atari_is_restored(tmp_path, protocol):
    full, bare = both(tmp_path, protocol, steps=48, iterations=range(1, 4), context=3)
    restore(bare / "archive", tmp_path / "restored")
    assert_equal(tmp_path / "restored", full / "archive")
    sizes = [sum(path.stat().st_size for path in segments(run / "archive")) for run in (bare, full)]
    assert sizes[0] < sizes[1]


def test_a_resume_and_settings_of_a_rank_are_restored(tmp_path):
    for name, content in {"full": "all", "bare": "actions"}.items():
        changes = [{}, {}, {"settings": {"sutton_barto_reward": True}}]
        record(tmp_path / name, CARTPOLE, lanes=(1, 2), changes=changes, iterations=range(1, 4), content=content)
        record(tmp_path / name, CARTPOLE, lanes=(1, 1), iterations=range(4, 7), first_episode=9, content=content)
    restore(tmp_path / "bare/archive", tmp_path / "restored")
    assert_equal(tmp_path / "restored", tmp_path / "full/archive")


def test_actions_alone_are_verified(tmp_path):
    run = record(tmp_path, CATCH, content="actions")
    with Emulators() as emulators:
        (tallies) = [verify(stretch, emulators) for stretch in survey(run / "archive").stretches]
        assert sum(tally.steps for tally in tallies) > 0 and not any(tally.divergences for tally in tallies)
    flip(run, 2, "reward", (0, 3))
    with Emulators() as emulators:
        assert any(verify(stretch, emulators).divergences for stretch in survey(run / "archive").stretches)


def test_steps_before_the_first_seed_point_become_seams(tmp_path):
    full, bare = both(tmp_path, CATCH, steps=7, iterations=range(1, 9), lanes=(3,))
    segments(bare / "archive")[0].unlink()
    done = restore(bare / "archive", tmp_path / "restored")
    expected = {iteration: batch for iteration, _, batch in read_archive(full / "archive")}
    unplayable = 0
    for iteration, _, batch in read_archive(tmp_path / "restored"):
        original = expected[iteration]
        live = np.zeros((3, 8), bool)
        for lane in range(3):
            marks = np.flatnonzero(original["seed"][lane] != NO_SEED)
            before = any((expected[i]["seed"][lane] != NO_SEED).any() for i in range(3, iteration))
            live[lane, 0 if before else marks[0] if len(marks) else 8 :] = True
        assert np.array_equal(batch["observation"][live], original["observation"][live])
        assert (batch["step_type"][~live] == StepType.LAST).all() and not batch["observation"][~live].any()
        assert np.array_equal(batch["step_type"][live], original["step_type"][live])
        unplayable += int(is_step(original["step_type"]).sum() - is_step(batch["step_type"]).sum())
    assert done.unplayable == unplayable > 0
    whole = [row for row in rows(full / "archive") if row["start_iteration"] >= 3]
    assert [row["id"] for row in rows(tmp_path / "restored")] == [row["id"] for row in whole]
    with Emulators() as emulators:
        assert not any(verify(stretch, emulators).divergences for stretch in survey(tmp_path / "restored").stretches)


def test_a_divergence_ends_it_and_leaves_nothing(tmp_path):
    run = record(tmp_path / "run", CATCH, content="actions")
    flip(run, 3, "reward", (0, 5))
    with pytest.raises(UserError, match="cannot restore: played again, episode .* reward is .*verify"):
        restore(run / "archive", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def call(capsys, *arguments):
    code = replay.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_the_command_restore_tells_what_it_wrote(tmp_path, capsys):
    run = record(tmp_path / "run", CATCH, content="actions")
    code, out, _ = call(capsys, run, "restore", "-o", tmp_path / "restored")
    assert code == 0 and "4 iterations" in out and "all rewards equal" in out
    assert call(capsys, tmp_path / "restored", "verify", "--jobs", 1)[0] == 0
    code, _, error = call(capsys, run, "restore", "-o", tmp_path / "restored")
    assert code == 2 and "exists: name a new folder" in error


def left_by_a_killed_run(run):
    """A run's folder with a journal, made from an archive that is whole."""
    batches = list(read_archive(run / "archive"))
    with Segment(segments(run / "archive")[0]) as segment:
        header = segment.header
    child = os.fork()
    if child == 0:
        try:
            writer = SegmentWriter(run / "archive", batches[0][2].layout, header)
            for iteration, version, batch in batches:
                writer.write(iteration + len(batches), version, batch, [])
            while not writer._staging.queue:
                time.sleep(0.001)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_command_recover_makes_segments_of_journals(tmp_path, capsys):
    run = record(tmp_path / "run", CATCH)
    assert "nothing to recover" in call(capsys, run, "recover")[1]
    left_by_a_killed_run(run)
    code, out, _ = call(capsys, run, "recover")
    assert code == 0 and "000002.h5: 4 iterations recovered, 5 to 8" in out and not journals(run / "archive")
    assert [iteration for iteration, *_ in read_archive(run / "archive")] == list(range(1, 9))
    assert call(capsys, tmp_path / "nowhere", "recover")[0] == 2


@pytest.mark.parametrize("place", [".", "archive"])
def test_a_run_that_is_still_going_is_left_alone(tmp_path, capsys, place):
    run = record(tmp_path / "run", CATCH)
    left_by_a_killed_run(run)
    (run / "config.yaml").write_text("")
    lock = RunDirectory(run)
    lock.lock()
    code, _, error = call(capsys, run / place, "recover")
    lock.release()
    assert code == 2 and "in use by a run that is still going" in error and len(journals(run / "archive")) == 1
    assert call(capsys, run / place, "recover")[0] == 0
