"""The run directory: nothing of value is lost to a second run, and only a whole run is marked completed."""

import logging
import os
import threading

import pytest

from mpirl import rundir
from mpirl.errors import UserError
from mpirl.rundir import COMPLETED, CONFIG, RunDirectory, close_log, open_log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "game" / "1"


def make_run(path, text="name: old\n"):
    """A run that began and ended."""
    directory = RunDirectory(path)
    directory.create(text, overwrite=False)
    (directory.checkpoints / "00000001.pt").write_text("weights")
    directory.keep(text)
    directory.complete("iteration 1")
    directory.release()


def test_a_new_run_gets_its_folders_and_its_config(path):
    directory = RunDirectory(path)
    directory.create("name: game\n", overwrite=False)
    assert (path / CONFIG).read_text() == "name: game\n"
    assert all(folder.is_dir() for folder in (directory.archive, directory.checkpoints, directory.logs))
    assert not (path / COMPLETED).exists()


def test_an_empty_folder_may_be_used(path):
    path.mkdir(parents=True)
    RunDirectory(path).create("", overwrite=False)


def test_an_existing_run_is_refused_with_the_ways_out(path):
    make_run(path)
    with pytest.raises(UserError, match="exists: write resume=true .*, overwrite=true .*, or another trial"):
        RunDirectory(path).create("name: new\n", overwrite=False)
    assert (path / CONFIG).read_text() == "name: old\n"


def test_overwrite_replaces_a_run_once_the_new_one_has_begun(path):
    make_run(path)
    directory = RunDirectory(path)
    directory.create("name: new\n", overwrite=True)
    assert not (directory.checkpoints / "00000001.pt").exists()
    directory.keep("name: new\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["1"]
    directory.discard()
    assert (path / CONFIG).read_text() == "name: new\n"


@pytest.mark.parametrize("is_folder", [True, False])
def test_overwrite_spares_what_is_no_run(path, is_folder):
    diary = path / "diary" if is_folder else path
    diary.parent.mkdir(parents=True)
    diary.write_text("dear diary")
    with pytest.raises(UserError, match="no run directory .*not overwritten: remove it yourself"):
        RunDirectory(path).create("", overwrite=True)
    assert diary.read_text() == "dear diary"


def test_the_old_run_comes_back_when_the_new_one_never_began(path):
    make_run(path)
    directory = RunDirectory(path)
    directory.create("name: new\n", overwrite=True)
    directory.discard()
    directory.release()
    assert (path / CONFIG).read_text() == "name: old\n"
    assert (path / "checkpoints" / "00000001.pt").exists() and (path / COMPLETED).exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["1"]


def test_the_old_run_comes_back_when_the_new_one_cannot_be_made(path, monkeypatch):
    make_run(path)

    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mpirl.rundir.write_atomically", full)
        with pytest.raises(UserError, match="cannot write .*config.yaml: No space left on device; free space"):
            RunDirectory(path).create("name: new\n", overwrite=True)
    assert (path / CONFIG).read_text() == "name: old\n" and (path / COMPLETED).exists()


def test_a_new_run_that_never_began_leaves_nothing(path):
    directory = RunDirectory(path)
    directory.create("", overwrite=False)
    directory.discard()
    assert not path.exists()


def test_ranks_that_did_not_make_the_directory_leave_it(path):
    make_run(path)
    other = RunDirectory(path)
    other.discard()
    other.release()
    assert (path / CONFIG).exists()


def test_a_run_that_is_going_keeps_others_out(path):
    first = RunDirectory(path)
    first.create("", overwrite=False)
    for enter in (lambda other: other.resume(), lambda other: other.create("", overwrite=True)):
        with pytest.raises(UserError, match="in use by a run that is still going"):
            enter(RunDirectory(path))
    assert (path / CONFIG).exists()
    first.release()
    RunDirectory(path).resume()


def test_a_run_that_was_told_to_stop_gets_the_time_to_save(path, capsys):
    first, second = RunDirectory(path), RunDirectory(path)
    first.create("", overwrite=False)
    os.write(first.lock_descriptor, b"saving")
    threading.Timer(1.2, first.release).start()
    second.resume()
    assert "is still saving; waiting for it" in capsys.readouterr().out
    with pytest.raises(UserError, match="in use by a run that is still going"):
        RunDirectory(path).resume()  # at once: the text went with the run that wrote it


def test_a_run_that_saves_for_too_long_is_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(rundir, "SAVING", 0.2)
    first = RunDirectory(path)
    first.create("", overwrite=False)
    os.write(first.lock_descriptor, b"saving")
    with pytest.raises(UserError, match="in use by a run that is still going"):
        RunDirectory(path).resume()


def test_resume_needs_a_run(path):
    with pytest.raises(UserError, match="resume=true: no run in .*start without resume=true, or mend run_dir"):
        RunDirectory(path).resume()
    assert not path.exists()


def test_resume_keeps_everything_and_discard_after_it_too(path):
    make_run(path)
    directory = RunDirectory(path)
    directory.resume()
    directory.discard()
    assert (path / "checkpoints" / "00000001.pt").exists() and (path / CONFIG).read_text() == "name: old\n"


def test_a_run_that_goes_on_is_not_completed_until_it_ends_again(path):
    make_run(path)
    directory = RunDirectory(path)
    directory.resume()
    assert (path / COMPLETED).exists(), "it may still turn out that it cannot go on"
    directory.keep("name: old\ntotal_steps: 20\n")
    assert not (path / COMPLETED).exists()
    assert (path / CONFIG).read_text() == "name: old\ntotal_steps: 20\n", "the next resume knows of it"
    directory.complete("iteration 2, 20 steps")
    assert (path / COMPLETED).read_text() == "iteration 2, 20 steps\n"
    assert not list(path.glob("*.tmp"))


def test_a_path_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make .*; mend run_dir"):
        RunDirectory(tmp_path / "file" / "run").create("", overwrite=False)


def test_every_rank_has_its_log(tmp_path):
    for rank in (0, 3):
        log = open_log(tmp_path / "logs", rank, {"rank": rank, "host": "a"})
        log.info("hello from %d", rank)
        close_log(log)
    assert sorted(os.listdir(tmp_path / "logs")) == ["rank-0000.log", "rank-0003.log"]
    lines = (tmp_path / "logs" / "rank-0003.log").read_text().splitlines()
    assert lines[0].endswith("INFO start: rank 3, host a") and lines[1].endswith("INFO hello from 3")


def test_a_log_goes_on_after_a_restart_and_into_one_file_only(tmp_path, capsys):
    for start in range(2):
        log = open_log(tmp_path, 1, {"start": start})
    log.info("once")
    close_log(log)
    text = (tmp_path / "rank-0001.log").read_text()
    assert text.count("once") == 1 and text.count("start:") == 2
    assert "once" not in "".join(capsys.readouterr())


def test_a_log_that_cannot_be_written_costs_the_log_only(tmp_path):
    (tmp_path / "file").write_text("")
    log = open_log(tmp_path / "file" / "logs", 1, {})
    log.info("lost")
    assert isinstance(log, logging.Logger)
    close_log(log)
