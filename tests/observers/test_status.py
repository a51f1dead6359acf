"""status.json: at every moment a whole file that a machine can read."""

import json
import os
import threading

import pytest

from mpirl.observers import status as status_module
from mpirl.observers.base import Outcome
from mpirl.observers.status import Status, replace_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "status.json"


def strictly(path):
    """Its content, by the letter of JSON: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_run_is_seen_from_its_start(path):
    Status(path, {"hosts": ["a", "b"], "pid": 5})
    content = strictly(path)
    assert (content["format"], content["state"], content["hosts"], content["pid"]) == (1, "running", ["a", "b"], 5)


def test_an_iteration_is_told_in_full(path, make_report):
    Status(path, {}, interval=0).observe(make_report(4))
    content = strictly(path)
    expected = {"iteration": 4, "steps": 400, "total_steps": 1000, "version": 4, "lag": 0, "eta": 12.0}
    expected |= {"mean_return": 5.0, "mean_length": 9.0, "episodes": 12, "fps": 50.0}
    assert expected.items() <= content.items()
    dropped = {"too old": 10}
    assert content["accounts"] == {"collected": 400, "gathered": 400, "learned": 390, "archived": 400, "dropped": dropped}
    phases = {name: seconds for name, seconds in content["seconds"].items() if name != "iteration"}
    assert sum(phases.values()) == content["seconds"]["iteration"]


def test_what_is_not_known_yet_is_null(path, make_report):
    Status(path, {}, interval=0).observe(make_report(mean_return=None, mean_length=None, fps=0.0))
    content = strictly(path)
    assert content["mean_return"] is None and content["mean_length"] is None


def test_the_latest_evaluation_stays(path, make_report):
    status = Status(path, {}, interval=0)
    status.observe(make_report(2, evaluation={"mean_reward": 7.5, "episodes": 10}))
    status.observe(make_report(3))
    assert strictly(path)["evaluation"] == {"mean_reward": 7.5, "episodes": 10, "steps": 200}


def test_the_disk_is_spared_between_intervals_and_the_end_is_always_told(path, make_report, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(status_module.time, "monotonic", lambda: now[0])
    status = Status(path, {}, interval=1.0)
    status.observe(make_report(1))
    assert "iteration" not in strictly(path)
    now[0] += 1
    status.observe(make_report(2))
    status.observe(make_report(3))
    assert strictly(path)["iteration"] == 2
    status.close(Outcome("stopped", "signal SIGTERM"))
    content = strictly(path)
    assert (content["iteration"], content["state"], content["reason"]) == (3, "stopped", "signal SIGTERM")


def test_readers_never_meet_a_part(path):
    replace_file(path, json.dumps({"number": 0, "rest": "x" * 200_000}))
    done = threading.Event()

    def write():
        for number in range(200):
            replace_file(path, json.dumps({"number": number, "rest": "x" * 200_000}))
        done.set()

    writer, numbers = threading.Thread(target=write), []
    writer.start()
    while not done.is_set():
        numbers.append(json.loads(path.read_text())["number"])
    writer.join()
    assert numbers == sorted(numbers) and os.listdir(path.parent) == ["status.json"]


def test_a_writer_that_fails_leaves_the_old_file(path, monkeypatch):
    replace_file(path, "old")

    def fail(source, target):
        raise OSError("no")

    monkeypatch.setattr(status_module.os, "replace", fail)
    with pytest.raises(OSError):
        replace_file(path, "new")
    assert path.read_text() == "old"
