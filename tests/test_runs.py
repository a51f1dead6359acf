"""The list of runs: every run once, in its true state, whatever its files look like."""

import json
import os
import pty
import socket
import subprocess
import sys
import time

import pytest

from mpirl import runs
from mpirl.observers.base import Outcome
from mpirl.observers.status import Status
from mpirl.rundir import CONFIG, RunDirectory
from mpirl.runs import compress, duration, main

STATUS = {"pid": 2**22 + 1, "steps": 3072, "total_steps": 14000, "mean_return": 1.5, "fps": 40.2, "eta": 271.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def make(path, checkpoint=True, completed=False, **status):
    """A run directory whose process is gone."""
    directory = RunDirectory(path)
    directory.create("name: x\n", overwrite=False)
    content = STATUS | {"name": path.parent.name, "trial": path.name, "state": "running", "updated": time.time()} | status
    directory.status.write_text(json.dumps(content))
    if checkpoint:
        (directory.checkpoints / "00000003.pt").write_text("")
    if completed:
        directory.complete("")
    directory.release()
    return directory


def listed(capsys, *arguments):
    """{run: its JSON object}, in the order of the list."""
    assert main(["--json", *arguments]) == 0
    return {f"{run['name']}/{run['trial']}": run for run in json.loads(capsys.readouterr().out)}


def text(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_what_a_run_writes_is_what_is_listed(folder, capsys):
    directory = RunDirectory(folder / "pong" / "7")
    directory.create("", overwrite=False)
    header = {"name": "pong", "trial": "7", "hosts": ["gpu0", "cpu1", "cpu1", "cpu2"], "pid": os.getpid()}
    status = Status(directory.status, header)
    (run,) = listed(capsys).values()
    assert (run["state"], run["steps"], run["mean_return"], run["run_dir"]) == ("running", None, None, "runs/pong/7")
    status.close(Outcome("stopped", "signal SIGUSR1"))
    directory.release()
    (run,) = listed(capsys).values()
    assert run["state"] == "stopped" and run["note"].startswith("signal SIGUSR1; ") and run["age"] < 60
    assert "gpu0, cpu[1-2]" in text(capsys) and run["hosts"] == header["hosts"]


def test_runs_of_any_depth_are_found_once_and_what_is_no_run_is_not(folder, capsys):
    for path in ("pong/1", "sweep/rate=1/pong/2", "3"):
        make(folder / path)
    make(folder / "pong" / "1" / "archive" / "discarded-0")
    make(folder / "pong" / ".hidden")
    (folder / "configs").mkdir()
    (folder / "configs" / CONFIG).write_text("")
    (folder / "a-link").symlink_to(folder / "pong", target_is_directory=True)
    (folder / "pong" / "loop").symlink_to(folder, target_is_directory=True)
    assert sorted(listed(capsys)) == ["pong/1", "pong/2", "runs/3"]
    assert [run["run_dir"] for run in listed(capsys, "--sort", "name").values()][0] == "runs/pong/1"
    assert list(listed(capsys, "runs/pong/1")) == ["pong/1"]


def test_a_completed_run_is_finished(folder, capsys):
    make(folder / "a" / "1", completed=True, state="finished")
    (run,) = listed(capsys).values()
    assert run["state"] == "finished" and run["note"] == "" and run["eta"] is None


@pytest.mark.parametrize("state", ["running", "finished"])
def test_a_run_whose_lock_is_free_and_that_is_not_completed_has_crashed(folder, capsys, state):
    make(folder / "a" / "1", state=state)
    make(folder / "a" / "2", state=state, checkpoint=False)
    found = listed(capsys)
    assert [run["state"] for run in found.values()] == ["crashed"] * 2
    assert found["a/1"]["note"] == "go on with resume=true run_dir=runs/a/1"
    assert "no checkpoint" in found["a/2"]["note"] and "overwrite=true" in found["a/2"]["note"]
    assert "runs/a/1 crashed: go on with resume=true" in text(capsys)


def test_a_run_that_holds_its_lock_is_running_and_keeps_it(folder, capsys):
    directory = make(folder / "a" / "1")
    directory.lock()
    assert listed(capsys)["a/1"]["state"] == "running"
    with pytest.raises(ValueError, match="in use"):
        RunDirectory(directory.path).lock()


def test_a_process_that_is_killed_is_seen_at_once(folder, capsys):
    directory = make(folder / "a" / "1")
    code = "import sys, time; from pathlib import Path; from mpirl.rundir import RunDirectory\n"
    code += "held = RunDirectory(Path(sys.argv[1])); held.lock(); print('locked', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(directory.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    assert listed(capsys)["a/1"]["state"] == "running"
    process.kill()
    process.wait()
    assert listed(capsys)["a/1"]["state"] == "crashed"


def test_listing_never_keeps_a_run_from_starting(folder):
    directory = make(folder / "a" / "1")
    code = "import time; from mpirl.runs import main\nend = time.monotonic() + 30\nprint('go', flush=True)\n"
    code += "while time.monotonic() < end: main(['--state', 'stopped'])"
    listing = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=folder.parent)
    try:
        assert listing.stdout.readline() == "go\n"
        for _ in range(300):
            directory.lock()
            directory.release()
    finally:
        listing.kill()
        listing.communicate()


@pytest.mark.parametrize("host, pid, state", [("here", "self", "running"), ("here", 0, "crashed"), ("far", 0, "running")])
def test_where_locks_cannot_be_tried_the_process_tells(folder, capsys, monkeypatch, host, pid, state):
    def unsupported(file, operation):
        raise OSError(95, "Operation not supported")

    hosts = [socket.gethostname() if host == "here" else "far-away", "cpu1"]
    make(folder / "a" / "1", hosts=hosts, pid=os.getpid() if pid == "self" else pid)
    monkeypatch.setattr(runs.fcntl, "flock", unsupported)
    assert listed(capsys)["a/1"]["state"] == state


@pytest.mark.parametrize(
    "content", [b"", b'{"state": "runn', b"[1, 2]", b"\xff\xfe", b'{"steps": 3}', b'{"state": ["x"]}', b"[" * 100_000]
)
def test_a_corrupt_status_costs_its_run_only(folder, capsys, content):
    make(folder / "a" / "good")
    make(folder / "a" / "bad").status.write_bytes(content)
    found = listed(capsys)
    assert found["a/bad"]["state"] == "unreadable" and found["a/bad"]["note"].startswith("status.json cannot be read: ")
    assert found["a/good"]["state"] == "crashed"
    assert "a/bad" in text(capsys, "--state", "unreadable")


def test_values_of_a_wrong_kind_are_unknown(folder, capsys):
    make(folder / "a" / "1", steps="many", hosts="gpu0", evaluation=3, mean_return=float("nan"), fps=[1], updated=None, name=0)
    (run,) = listed(capsys).values()
    assert [run[key] for key in ("steps", "hosts", "evaluation", "mean_return", "fps")] == [None, [], None, None, None]
    assert run["name"] == "a" and run["age"] < 60
    assert "crashed" in text(capsys)


def test_a_failure_is_told_in_one_line(folder, capsys):
    reason = "RankFailed: rank 2 on host cpu1 failed:\nTraceback (most recent call last):\n  File x\nKeyError: 'y'\n"
    make(folder / "a" / "1", state="failed", reason=reason)
    assert "runs/a/1 failed: RankFailed: rank 2 on host cpu1 failed: ... KeyError: 'y'; go on with resume=true" in text(capsys)


def test_the_list_is_sorted_and_filtered(folder, capsys):
    now = time.time()
    make(folder / "b" / "2", updated=now - 30, mean_return=None, steps=10)
    make(folder / "b" / "10", updated=now - 10, mean_return=-5.0, steps=None, state="stopped", reason="")
    make(folder / "a" / "1", updated=now - 20, mean_return=7.0, steps=5)
    assert list(listed(capsys)) == ["b/10", "a/1", "b/2"]
    assert list(listed(capsys, "--sort", "name")) == ["a/1", "b/2", "b/10"]
    assert list(listed(capsys, "--sort", "return")) == ["a/1", "b/10", "b/2"]
    assert list(listed(capsys, "--sort", "steps")) == ["b/2", "a/1", "b/10"]
    assert list(listed(capsys, "--state", "stopped")) == ["b/10"]
    assert text(capsys, "--state", "running") == "no running runs in runs\n"


def test_no_runs_is_no_mistake_and_no_folder_is_one(folder, capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mpirl: no folder runs: ") and captured.out == ""
    folder.mkdir()
    assert text(capsys) == "no runs in runs\n"
    assert listed(capsys) == {}
    assert main(["--watch", "-1"]) == 2


def test_columns_are_aligned(folder, capsys):
    make(folder / "a" / "1", hosts=["x"], evaluation={"mean_reward": 21.0})
    make(folder / "a-longer-name" / "1", steps=1_000_000, total_steps=2_000_000, hosts=["gpu0", "cpu1", "cpu2"])
    head, *rows = text(capsys, "--sort", "name").splitlines()[:3]
    for name in ("state", "hosts", "directory"):  # begin where their head does
        place = head.index(name)
        assert all(row[place - 2 : place] == "  " and row[place] != " " for row in rows)
    end = head.index("steps") + len("steps")
    assert [row[:end].split("  ")[-1].strip() for row in rows] == ["3,072 / 14,000", "1,000,000 / 2,000,000"]


def on_terminal(columns, folder):
    """What the list looks like on a terminal of so many columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns)}
    subprocess.run([sys.executable, "-m", "mpirl.runs", str(folder)], stdout=slave, env=environment, check=True)
    os.close(slave)
    written = os.read(master, 65536).decode()
    os.close(master)
    return written.splitlines()


def test_a_narrow_terminal_gets_fewer_columns_and_a_pipe_gets_all(folder):
    make(folder / "pong" / "1", completed=True, hosts=["gpu0", *(f"cpu{n}" for n in range(1, 9))])
    narrow, wide = on_terminal(60, folder), on_terminal(250, folder)
    assert all(len(line) <= 60 for line in narrow) and len(narrow) == 2
    assert "state" in narrow[0] and "hosts" not in narrow[0] and "gpu0, cpu[1-8]" in wide[1]
    environment = {**os.environ, "COLUMNS": "60"}
    piped = subprocess.run([sys.executable, "-m", "mpirl.runs", folder], capture_output=True, text=True, env=environment)
    assert "gpu0, cpu[1-8]" in piped.stdout


def test_the_list_is_repeated_until_it_is_interrupted(folder):
    make(folder / "pong" / "1", completed=True)
    command = [sys.executable, "-m", "mpirl.runs", folder, "--watch", "0.05"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    heads = 0
    while heads < 3:
        heads += process.stdout.readline().startswith("run ")
    process.send_signal(2)
    assert process.communicate(timeout=10) and process.returncode == 0


def test_a_reader_that_goes_away_is_no_failure(folder):
    make(folder / "pong" / "1", completed=True)
    result = subprocess.run(
        f"{sys.executable} -m mpirl.runs {folder} --watch 0.05 | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == ""


def test_listing_needs_no_heavy_library(folder):
    folder.mkdir()
    code = "import sys; from mpirl.runs import main; main([sys.argv[1]])\n"
    code += "print({'torch', 'numpy', 'hydra', 'yaml', 'h5py', 'mpi4py'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "hosts, expected",
    [
        (["gpu0", "cpu1", "cpu1", "cpu2", "cpu3", "cpu4"], "gpu0, cpu[1-4]"),
        (["cpu1", "cpu3", "cpu4"], "cpu[1,3-4]"),
        (["node07", "node08", "node9", "node10"], "node[07-08,10], node9"),
        (["cpu2.lab.org", "cpu1.lab.org"], "cpu[1-2].lab.org"),
        (["alpha", "beta"], "alpha, beta"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1, 10.0.0.2"),
        (["rack1-3-ib", "rack1-4-ib"], "rack1-[3-4]-ib"),
        ([], ""),
    ],
)
def test_hosts_are_told_in_short(hosts, expected):
    assert compress(hosts) == expected


@pytest.mark.parametrize(
    "seconds, expected", [(0, "0 s"), (99, "99 s"), (300, "5 min"), (7200, "2.0 h"), (47 * 3600, "47.0 h"), (864000, "10.0 d")]
)
def test_times_are_told_in_one_unit(seconds, expected):
    assert duration(seconds) == expected
