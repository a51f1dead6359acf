"""Two runs that want one directory at the same moment: one gets it, whole, and the other is told so."""

import errno
import multiprocessing
from pathlib import Path

import pytest

from mpirl.errors import UserError
from mpirl.rundir import CONFIG, LOCK, RunDirectory

ROUNDS = 12
REFUSALS = ("in use by a run that is still going", "exists: write resume=true")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "game" / "1"


def make_run(path, text):
    """A run that began and ended."""
    directory = RunDirectory(path)
    directory.create(text, overwrite=False)
    directory.keep(text)
    directory.release()


def contend(name, folder, overwrite, begins, barrier, results):
    """In every round, start a run in the round's directory when the other process does; tell how it went."""
    for number in range(ROUNDS):
        directory, path = None, folder / str(number)
        barrier.wait(30)
        try:
            directory = RunDirectory(path)
            directory.create(name, overwrite)
            result = "won"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        barrier.wait(30)
        if result == "won":
            assert (path / CONFIG).read_text() == name and directory.logs.is_dir()
            directory.keep(name) if begins else directory.discard()
            directory.release()
        results.put((number, name, result))


def contest(folder, overwrite, begins):
    """round -> {process: how it went}, of two processes that start at the same moments."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (folder, overwrite, begins, barrier, results)
    processes = [context.Process(target=contend, args=(name, *arguments)) for name in "ab"]
    for process in processes:
        process.start()
    told = [results.get(timeout=60) for _ in range(2 * ROUNDS)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return {number: {name: result for at, name, result in told if at == number} for number in range(ROUNDS)}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("begins", [True, False])
def test_of_two_processes_that_start_a_run_at_once_one_gets_it(tmp_path, overwrite, begins):
    if overwrite:
        for number in range(ROUNDS):
            make_run(tmp_path / str(number), "old")
    for number, went in contest(tmp_path, overwrite, begins).items():
        winners = [name for name, result in went.items() if result == "won"]
        (refusal,) = [result for result in went.values() if result != "won"]
        assert refusal.startswith("UserError") and any(text in refusal for text in REFUSALS), refusal
        path = tmp_path / str(number)
        expected = winners[0] if begins else "old" if overwrite else None
        assert ((path / CONFIG).read_text() if path.exists() else None) == expected
        assert not list(path.glob(".replaced*"))
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def meanwhile(monkeypatch, action):
    """Have `action` happen after a run has looked at its directory, and before it has the lock."""
    lock = RunDirectory.lock

    def late(self):
        monkeypatch.setattr(RunDirectory, "lock", lock)
        action()
        self.lock()

    monkeypatch.setattr(RunDirectory, "lock", late)


def test_a_run_that_came_and_went_meanwhile_is_not_written_over(path, monkeypatch):
    meanwhile(monkeypatch, lambda: make_run(path, "other"))
    with pytest.raises(UserError, match="exists: write resume=true"):
        RunDirectory(path).create("mine", overwrite=False)
    assert (path / CONFIG).read_text() == "other"
    RunDirectory(path).resume()


def test_a_run_that_began_meanwhile_is_not_overwritten(path, monkeypatch):
    make_run(path, "old")
    other = RunDirectory(path)
    meanwhile(monkeypatch, lambda: other.create("other", overwrite=True))
    with pytest.raises(UserError, match="in use by a run that is still going"):
        RunDirectory(path).create("mine", overwrite=True)
    other.keep("other")
    assert (path / CONFIG).read_text() == "other"


def test_a_run_that_never_began_meanwhile_cannot_be_resumed(path, monkeypatch):
    other = RunDirectory(path)
    other.create("other", overwrite=False)

    def end():
        other.discard()
        other.release()

    meanwhile(monkeypatch, end)
    with pytest.raises(UserError):
        RunDirectory(path).resume()
    assert not path.exists()


def test_a_lock_whose_file_was_removed_keeps_nobody_out_and_is_not_taken(path, monkeypatch):
    make_run(path, "old")
    opened = open

    def open_late(file, mode):
        handle = opened(file, mode)
        monkeypatch.setattr("builtins.open", opened)
        (path / LOCK).unlink()  # with its directory, by a run that never began
        return handle

    monkeypatch.setattr("builtins.open", open_late)
    first = RunDirectory(path)
    first.lock()
    with pytest.raises(UserError, match="in use"):
        RunDirectory(path).lock()


def test_a_run_that_cannot_be_put_aside_stays_whole(path, monkeypatch):
    make_run(path, "old")
    (path / "checkpoints" / "1.pt").write_text("weights")
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(self)
        if len(calls) == 3:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_once)
        with pytest.raises(OSError):
            RunDirectory(path).create("new", overwrite=True)
    assert (path / CONFIG).read_text() == "old" and (path / "checkpoints" / "1.pt").read_text() == "weights"
    assert sorted(entry.name for entry in path.iterdir()) == [LOCK, "archive", "checkpoints", CONFIG, "logs"]


def test_a_refusal_leaves_no_lock_in_a_folder_that_is_no_run(path):
    path.mkdir(parents=True)
    (path / "diary").write_text("dear diary")
    for overwrite in (False, True):
        with pytest.raises(UserError):
            RunDirectory(path).create("", overwrite)
    assert [entry.name for entry in path.iterdir()] == ["diary"]


def test_a_run_that_was_killed_before_it_wrote_anything_is_no_hindrance(path):
    path.mkdir(parents=True)
    (path / LOCK).write_text("")
    RunDirectory(path).create("new", overwrite=False)
    assert (path / CONFIG).read_text() == "new"
