"""Checkpoints: whole or not there, the last few and the best, and readable without running any code."""

import errno
import os
import pickle
import subprocess
import sys

import pytest
import torch
from learning import Recorder, fill, make_learner

from mpirl import files
from mpirl.checkpoint import Checkpoints, load, numbered, write
from mpirl.errors import UserError
from mpirl.schedule import Command


def advance(learner, iterations=1):
    for _ in range(iterations):
        command = Command(learner.iteration + 1, learner.version)
        fill(learner, command.iteration)
        learner.take(command)
        learner.learn()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def learner():
    return make_learner()


def test_a_learner_comes_back_as_it_was_saved(tmp_path, learner):
    advance(learner, 3)
    path = Checkpoints(tmp_path).save(learner)
    found, state = load(tmp_path)
    assert found == path == tmp_path / "00000003.pt"
    resumed = make_learner()
    resumed.load_state_dict(state)
    assert (resumed.iteration, resumed.version, resumed.steps) == (3, 3, 21)
    assert torch.equal(resumed._weights.flat.vector, learner._weights.flat.vector)
    assert resumed.accounts == learner.accounts and resumed.episodes.mean_return == learner.episodes.mean_return


def test_a_state_taken_earlier_can_be_saved(tmp_path, learner):
    advance(learner, 2)
    state = learner.state_dict()
    advance(learner)
    assert Checkpoints(tmp_path).save_state(state) == tmp_path / "00000002.pt"
    assert load(tmp_path)[1]["accounts"] == state["accounts"] and names(tmp_path) == ["00000002.pt", "best.pt"]


def test_the_last_few_and_the_best_are_kept(tmp_path, learner):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for mean in (1.0, 5.0, 3.0, 4.0):
        advance(learner)
        learner.episodes.recent.clear()
        learner.episodes.recent.append((mean, 1))
        checkpoints.save(learner)
    assert names(tmp_path) == ["00000003.pt", "00000004.pt", "best.pt"]
    assert load(tmp_path, "best")[1]["iteration"] == 2


def test_the_best_is_remembered_over_a_restart(tmp_path, learner):
    advance(learner, 2)
    Checkpoints(tmp_path).save(learner)
    learner.episodes.recent.clear()
    learner.episodes.recent.append((-7.0, 1))
    advance(learner)
    learner.episodes.recent.pop()
    Checkpoints(tmp_path).save(learner)
    assert load(tmp_path, "best")[1]["iteration"] == 2


def test_without_an_episode_there_is_no_best(tmp_path, learner):
    advance(learner)
    learner.episodes.recent.clear()
    Checkpoints(tmp_path).save(learner)
    assert names(tmp_path) == ["00000001.pt"]


def test_the_archive_is_on_disk_before_the_checkpoint(tmp_path):
    archive = Recorder()
    learner = make_learner(archive=archive)
    advance(learner)
    Checkpoints(tmp_path).save(learner)
    assert archive.events == ["flush"]


def test_checkpoints_are_found_by_number_name_and_path(tmp_path, learner):
    checkpoints = Checkpoints(tmp_path)
    for _ in range(2):
        advance(learner)
        checkpoints.save(learner)
    for which, iteration in (("latest", 2), ("1", 1), ("00000001", 1), ("best", 2), (str(tmp_path / "00000001.pt"), 1)):
        assert load(tmp_path, which)[1]["iteration"] == iteration


def test_missing_checkpoints_are_errors_that_say_what_there_is(tmp_path, learner):
    with pytest.raises(UserError, match="no checkpoint in .*: nothing to go on from; start anew with overwrite=true"):
        load(tmp_path)
    advance(learner)
    Checkpoints(tmp_path).save(learner)
    with pytest.raises(UserError, match="no checkpoint .*00000007.pt; there are: 00000001.pt, best.pt"):
        load(tmp_path, "7")
    with pytest.raises(UserError, match="no checkpoint nowhere.pt"):
        load(tmp_path, "nowhere.pt")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("00000001.pt", "wb") as file:
        pickle.dump({"format": 1, "trap": Trap()}, file, protocol=2)
    torch.save({"format": 1, "trap": Trap()}, "00000002.pt")
    for which in ("1", "2"):
        with pytest.raises(UserError, match="cannot be read"):
            load(tmp_path, which)
    assert not os.path.exists("trapped")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half"])
def test_a_corrupt_file_is_the_users_to_mend(tmp_path, learner, content):
    advance(learner)
    path = Checkpoints(tmp_path).save(learner)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(UserError, match="checkpoint .*00000001.pt cannot be read .*choose another by its number"):
        load(tmp_path)


def test_a_corrupt_best_is_the_users_to_mend(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"no")
    with pytest.raises(UserError, match="best.pt cannot be read .*remove it"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize("state", [{"format": 99}, {}, [1, 2]])
def test_another_format_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "00000001.pt")
    with pytest.raises(UserError, match="has format (99|None), this mpirl reads 1"):
        load(tmp_path)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, learner, monkeypatch, failing):
    checkpoints = Checkpoints(tmp_path, keep=1)
    advance(learner)
    checkpoints.save(learner)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    advance(learner)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, failing, full)
        with pytest.raises(UserError, match="00000002.pt cannot be written: No space left on device; free space"):
            checkpoints.save(learner)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    checkpoints.save(learner)
    assert load(tmp_path)[1]["iteration"] == 2


KILL_WRITERS = """
import os, signal, sys, time, torch
from pathlib import Path
from mpirl.checkpoint import write
path = Path("00000001.pt")
for victim in range(1, 6):
    writer = os.fork()
    number = 0
    while writer == 0:
        number += 1
        write(path, {"format": 1, "numbers": torch.full((300_000,), float(number))})
    while not path.exists():
        time.sleep(0.001)
    time.sleep(0.002 * victim)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    path.rename(f"{victim:08d}.pt.after")
"""


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    subprocess.run([sys.executable, "-c", KILL_WRITERS], cwd=tmp_path, check=True, timeout=120)
    files = sorted(tmp_path.glob("*.after"))
    assert len(files) == 5
    for file in files:
        numbers = load(tmp_path, str(file))[1]["numbers"]
        assert (numbers == numbers[0]).all() and numbers[0] >= 1


def test_leftovers_of_a_killed_writer_are_no_checkpoints(tmp_path):
    (tmp_path / "00000009.pt.part").write_bytes(b"half")
    write(tmp_path / "00000003.pt", {"format": 1})
    assert [path.name for path in numbered(tmp_path)] == ["00000003.pt"]
