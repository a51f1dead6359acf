"""Milestones of a start-up: counted from the process's own start, and told in the run's status and logs."""

import json
import subprocess
import sys
import time

from mpirl.milestones import Milestones, age

RUN = "import sys; from mpirl.main import main; main()"


def test_a_process_knows_when_it_started():
    before = time.time()
    code = "import time; time.sleep(0.3); from mpirl.milestones import age; print(time.time() - age(), age())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert before - 0.05 <= float(told[0]) <= before + 10 and float(told[1]) >= 0.3
    assert time.time() - age() < before + 0.05  # this one was there already


def test_milestones_are_in_order_and_work_counts_as_core_seconds():
    milestones = Milestones()
    milestones.reach("first")
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    milestones.reach("second")
    found = milestones.as_dict()
    assert list(found["seconds"]) == list(found["core_seconds"]) == ["first", "second"]
    assert found["core_seconds"]["second"] - found["core_seconds"]["first"] >= 0.09
    assert found["seconds"]["second"] - found["seconds"]["first"] >= 0.09


def test_what_is_reached_later_shows_in_what_was_given_out():
    milestones = Milestones()
    given = milestones.as_dict()
    milestones.reach("first iteration")
    assert "first iteration" in given["seconds"]


def test_a_run_tells_its_milestones(tmp_path):
    run = tmp_path / "run"
    settings = ["emulator=catch", "total_steps=1", "precision=fp32", f"run_dir={run}"]
    subprocess.run([sys.executable, "-c", RUN, *settings], check=True, capture_output=True, cwd=tmp_path)
    startup = json.loads((run / "status.json").read_text())["startup"]
    names = ["config", "plan", "identity and run directory", "emulators", "model", "precision", "all parts", "first iteration"]
    assert list(startup["seconds"]) == names
    assert list(startup["seconds"].values()) == sorted(startup["seconds"].values())
    for rank in range(2):
        [line] = [line for line in (run / "logs" / f"rank-{rank:04d}.log").read_text().splitlines() if "startup: " in line]
        assert list(json.loads(line.split("startup: ")[1])["seconds"]) == names[:-1]
