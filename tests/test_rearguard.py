"""A run that is killed right after TERM is saved by the child that it forked; one that ends in order is left alone."""

import hashlib
import json
import os
import signal
import time

import pytest
import torch
from learning import SPECS, STEPS, STEPS_PER_BATCH, fill, make_learner

from mpirl import rearguard as module
from mpirl.archive.reader import read_archive
from mpirl.archive.writer import SegmentWriter
from mpirl.checkpoint import Checkpoints, load
from mpirl.rearguard import copied, is_needed, rearguard
from mpirl.rundir import RunDirectory
from mpirl.schedule import Command, Schedule, Signals
from mpirl.trajectory import Layout

MPIRUN = {"OMPI_COMM_WORLD_SIZE": "3"}


@pytest.fixture(autouse=True)
def copy_every_iteration(monkeypatch):
    monkeypatch.setattr(module, "SHARE", 1e9)


class Run:
    """A learner with its run directory, as rank 0 has them."""

    def __init__(self, path):
        self.path, self.directory = path, RunDirectory(path)
        self.directory.create("", overwrite=False)
        self.directory.status.write_text(json.dumps({"state": "running", "iteration": 0, "pid": os.getpid()}))
        self.learner = make_learner(archive=SegmentWriter(self.directory.archive, Layout(SPECS, STEPS), {}))
        self.checkpoints = Checkpoints(self.directory.checkpoints)

    def take(self):
        command = Command(self.learner.iteration + 1, self.learner.version)
        fill(self.learner, command.iteration)
        self.learner.take(command)
        return command

    def iterate(self, guards=()):
        self.take()
        self.learner.learn()
        for guard in guards:
            guard.observe(None)

    def guarded(self):
        return rearguard(self.learner, self.checkpoints, self.directory, MPIRUN)


def a_long_update(seconds=20):
    """One call of C during which Python's signal handlers do not run."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(2e6 * seconds))


def in_a_process(act, path):
    """Do `act(run, tell)` in a process (and group) of its own, up to `tell()`; its id."""
    told, teller = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.setpgid(0, 0)
            with Signals(Schedule(10**6)):
                act(Run(path), lambda: os.write(teller, b"."))
        finally:
            os._exit(0)
    os.close(teller)
    assert os.read(told, 1) == b"."
    os.close(told)
    return process


def end_as_mpirun_does(process):
    os.killpg(process, signal.SIGTERM)
    time.sleep(0.25)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


def saved(path):
    """The status and the archive's iterations, once nobody holds the run's lock."""
    directory = RunDirectory(path)
    directory.resume()
    directory.release()
    return json.loads((path / "status.json").read_text()), [iteration for iteration, *_ in read_archive(path / "archive")]


def log(path):
    return (path / "logs/rank-0000.log").read_text()


def test_a_run_killed_in_an_update_is_saved_as_of_the_iteration_before(tmp_path):
    def act(run, tell):
        with run.guarded() as guards:
            for _ in range(3):
                run.iterate(guards)
            run.take()
            tell()
            a_long_update()

    path = tmp_path / "run"
    end_as_mpirun_does(in_a_process(act, path))
    status, iterations = saved(path)
    state = load(path / "checkpoints")[1]
    assert state["iteration"] == 3 and state["accounts"]["archived"] == 3 * STEPS_PER_BATCH
    assert iterations == [1, 2, 3, 4], "the batch that was being learned from is not lost either"
    assert (status["state"], status["reason"], status["iteration"]) == ("stopped", "signal SIGTERM", 3)
    assert status["ended"] <= time.time() and status["steps"] == 3 * STEPS_PER_BATCH
    assert log(path).endswith("INFO killed after SIGTERM; saved iteration 3\n")
    resumed = make_learner()
    resumed.load_state_dict(state)
    assert resumed.version == 3


def test_a_run_killed_before_it_has_learned_leaves_its_archive_and_no_checkpoint(tmp_path):
    def act(run, tell):
        with run.guarded():
            run.take()
            tell()
            a_long_update()

    path = tmp_path / "run"
    end_as_mpirun_does(in_a_process(act, path))
    status, iterations = saved(path)
    assert (status["state"], status["iteration"], iterations) == ("stopped", 0, [1])
    assert not list((path / "checkpoints").iterdir())


def test_a_run_that_ends_in_order_is_left_alone(tmp_path):
    def act(run, tell):
        with run.guarded() as guards:
            run.iterate(guards)
            tell()
            time.sleep(0.3)
            children = os.path.join("/proc", str(os.getpid()), "task", "*", "children")
            assert os.system(f"cat {children} | grep -q .") == 0, "there is no child"
        os.waitpid(-1, os.WNOHANG)  # raises ChildProcessError: it has gone

    path = tmp_path / "run"
    process = in_a_process(act, path)
    os.killpg(process, signal.SIGTERM)
    os.waitpid(process, 0)
    directory = RunDirectory(path)
    directory.resume()
    assert json.loads(directory.status.read_text())["state"] == "running"
    assert not list(directory.checkpoints.iterdir()) and not list(directory.logs.iterdir())


def test_what_the_run_saved_by_itself_before_it_was_killed_stands(tmp_path):
    def act(run, tell):
        with run.guarded() as guards:
            run.iterate(guards)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            run.iterate()
            run.checkpoints.save(run.learner)
            tell()
            a_long_update()

    path = tmp_path / "run"
    end_as_mpirun_does(in_a_process(act, path))
    status, iterations = saved(path)
    assert load(path / "checkpoints")[1]["iteration"] == status["iteration"] == 2 and iterations == [1, 2]


def test_an_error_after_term_does_not_keep_the_run_from_being_saved(tmp_path):
    """As when rank 0 notices that the other ranks have been killed, just before it is killed as well."""

    def act(run, tell):
        with run.guarded() as guards:
            run.iterate(guards)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            tell()
            raise RuntimeError

    path = tmp_path / "run"
    os.waitpid(in_a_process(act, path), 0)
    status, iterations = saved(path)
    assert (status["state"], iterations) == ("stopped", [1]) and load(path / "checkpoints")[1]["iteration"] == 1


def test_a_child_that_cannot_save_says_why(tmp_path):
    def act(run, tell):
        with run.guarded() as guards:
            run.iterate(guards)
            run.directory.checkpoints.rmdir()
            tell()
            a_long_update()

    path = tmp_path / "run"
    end_as_mpirun_does(in_a_process(act, path))
    status, _ = saved(path)
    assert status["state"] == "failed" and "not saved: UserError: checkpoint" in status["reason"]
    assert "ERROR killed after SIGTERM, and not saved: UserError: checkpoint" in log(path)


def test_a_copy_is_on_the_cpu_and_shares_nothing():
    state = {"weights": torch.arange(3.0), "list": [torch.zeros(2), (1, [2])], "number": 3}
    copy = copied(state)
    state["weights"] += 1
    state["list"][0] += 1
    state["list"][1][1].append(5)
    assert torch.equal(copy["weights"], torch.arange(3.0)) and torch.equal(copy["list"][0], torch.zeros(2))
    assert copy["list"][1] == (1, [2]) and copy["number"] == 3


def test_copies_take_a_hundredth_of_the_time_at_most(tmp_path, monkeypatch):
    now = [0.0]

    def slow_copy(state):
        now[0] += 2.0
        return state

    monkeypatch.setattr(module, "SHARE", 0.01)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(module, "copied", slow_copy)
    guard = module.Rearguard(make_learner(), Checkpoints(tmp_path), RunDirectory(tmp_path))
    for _ in range(1000):
        now[0] += 1.0
        guard.observe(None)
    assert now[0] == 1000 + 6 * 2, "one at the start, and 5"


@pytest.mark.parametrize("environ", [{"PMI_SIZE": "3"}, {"PMIX_RANK": "0"}, {}], ids=["MPICH", "srun", "no launcher"])
def test_only_open_mpis_mpirun_is_so_impatient(environ, tmp_path):
    assert is_needed(MPIRUN) and not is_needed(environ)
    with rearguard(make_learner(), Checkpoints(tmp_path), RunDirectory(tmp_path), environ) as guards:
        assert guards == []
