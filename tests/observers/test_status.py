"""status.json: at every moment a whole file that a machine can read."""

import json

import pytest

from mpirl.observers import status as status_module
from mpirl.observers.base import Outcome
from mpirl.observers.status import Status


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
    numbers = {"collected": 400, "gathered": 400, "learned": 390, "archived": 400}
    assert content["accounts"] == {**numbers, "dropped": dropped, "thinned": {}, "deleted": {}}
    phases = {name: seconds for name, seconds in content["seconds"].items() if name != "iteration"}
    assert sum(phases.values()) == content["seconds"]["iteration"]


def test_medians_leave_out_the_warm_up_and_rare_phases(path, make_report):
    status = Status(path, {}, interval=0)
    for iteration, collect in enumerate([90.0, 80.0, 1.0, 3.0, 2.0], start=1):
        rare = {"evaluate": 50.0} if iteration == 4 else {}
        status.observe(make_report(iteration, seconds={"collect": collect, "learn": 0.5, **rare}))
    content = strictly(path)
    assert content["medians"] == {"collect": 2.0, "learn": 0.5, "evaluate": 0.0}
    assert content["measured"] == 3


def test_steps_per_iteration_is_the_median_of_what_iterations_added_also_after_a_resume(path, make_report):
    status = Status(path, {}, interval=0)
    for iteration, steps in enumerate([70_000, 70_100, 70_195, 70_295, 70_394], start=700):
        status.observe(make_report(iteration, steps=steps))
    assert strictly(path)["steps_per_iteration"] == 99


def test_medians_follow_the_latest_iterations(path, make_report):
    status = Status(path, {}, interval=1000)
    for iteration in range(1, 2 + 3 * status_module.WINDOW):
        status.observe(make_report(iteration, seconds={"collect": float(iteration)}))
    status.close(Outcome("stopped", ""))
    content = strictly(path)
    last, half = content["iteration"], status_module.WINDOW / 2
    assert content["medians"]["collect"] == last - half + 0.5 and content["measured"] == status_module.WINDOW


def test_there_are_no_medians_before_there_is_something_to_take_them_of(path, make_report):
    status = Status(path, {}, interval=0)
    for iteration in (1, 2):
        status.observe(make_report(iteration))
    assert "medians" not in strictly(path)


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
