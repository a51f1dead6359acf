"""The sizing command reads a run directory, says what limits it, and tells mistakes in one line."""

import json
import subprocess
import sys

import pytest

from mpirl.forecast import Measurement, predict
from mpirl.sizing import main, read_measurement, verdict, world_sizes

MEDIANS = {"broadcast": 0.01, "collect": 2.8, "gather": 0.02, "archive": 0.03, "learn": 0.9, "other": 0.04}


@pytest.fixture
def make_run(tmp_path):
    """make_run(**changes): a run directory with a status.json; a value of None leaves the key out."""

    def make(logs=None, **changes):
        status = {
            "format": 1,
            "hosts": ["gpu0", "cpu1", "cpu1"],
            "lanes": [0, 4, 4],
            "threads": [2, 1, 1],
            "iteration": 30,
            "resumed_at_iteration": 0,
            "measured": 28,
            "medians": {**MEDIANS, "iteration": sum(MEDIANS.values())},
            "steps_per_iteration": 1000,
            "weights_bytes": 6_800_000,
            "batch_bytes": 7_200_000,
            **changes,
        }
        (tmp_path / "status.json").write_text(json.dumps({key: value for key, value in status.items() if value is not None}))
        (tmp_path / "logs").mkdir()
        for rank, seconds in (logs or {}).items():
            lines = [f"iteration {i} version {i}: 9 steps so far, collected in {s:.3f} s" for i, s in enumerate(seconds)]
            (tmp_path / "logs" / f"rank-{rank:04d}.log").write_text("\n".join(["start", *lines]))
        return tmp_path

    return make


def test_a_run_is_read(make_run):
    found = read_measurement(make_run())
    assert (found.lanes, found.steps, found.iterations, found.hosts, found.worker_threads) == ((4, 4), 1000, 28, 2, 1)
    assert found.fixed_share is None


def test_workers_with_unequal_lanes_tell_the_fixed_part_of_collecting(make_run):
    run = make_run(lanes=[0, 2, 4], logs={1: [99.0, 99.0, 2.0, 2.0, 50.0], 2: [99.0, 99.0, 3.0, 3.0, 3.0]})
    assert read_measurement(run).fixed_share == pytest.approx(1 / 3)


def test_logs_on_other_hosts_are_done_without(make_run):
    assert read_measurement(make_run(lanes=[0, 2, 4], logs={1: [1.0] * 9})).fixed_share is None


def test_workers_without_lanes_do_not_count(make_run):
    assert read_measurement(make_run(lanes=[0, 8, 0])).lanes == (8,)


def test_the_report_says_what_limits_and_what_to_type(make_run, capsys):
    assert main([str(make_run())]) == 0
    printed = capsys.readouterr().out
    assert "Collecting takes 74%" in printed and "placement.learner_threads" in printed
    # batch of 8 lanes: never 80 %, so no command; 4 lanes each: 2.8 s of collecting against 0.475 s per worker
    assert "mpirun -np 25 --hostfile hostfiles/lab python -m mpirl.main ... placement.lanes_per_worker=4" in printed


def test_the_shown_numbers_of_workers_can_be_chosen(make_run, capsys):
    assert main([str(make_run()), "--workers", "7", "--lanes-per-worker", "3", "--cores-per-host", "4"]) == 0
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.endswith(("MB", "GB"))]
    assert lines == [["7", "8", "2"], ["7", "21", "3"]]


def test_hosts_are_counted_from_their_cores(make_run, capsys):
    main([str(make_run()), "--cores-per-host", "10"])
    assert "up to 24 workers on 3 hosts beside rank 0's" in capsys.readouterr().out


@pytest.mark.parametrize(("phase", "mend"), [("learn", "GPU"), ("archive", "compression"), ("gather", "network")])
def test_a_busy_rank_0_is_told_what_helps(phase, mend):
    measured = Measurement({**MEDIANS, phase: 50.0}, (4, 4), 1000, 1, 1, 20)
    told = verdict(predict(measured, 2, 8, 10))
    assert told.startswith("Rank 0 is busy for 9") and mend in told


def test_the_useful_number_is_among_those_shown():
    useful = predict(Measurement(MEDIANS, (4, 4), 1000, 1, 1, 20), 13, 52, 10)
    assert world_sizes(2, useful, 100) == [2, 4, 8, 13, 16]
    assert world_sizes(2, None, 6) == [2, 4, 6]
    assert world_sizes(20, useful, 100) == [13, 20]
    assert world_sizes(8, None, 4) == [4]


MISTAKES = {
    "too short": ({"iteration": 4}, "4 iterations since its start: run at least 5"),
    "resumed": ({"resumed_at_iteration": 28}, "2 iterations since its start"),
    "never began": ({"iteration": None, "medians": None}, "0 iterations"),
    "old": ({"weights_bytes": None, "batch_bytes": None}, "has no weights_bytes, batch_bytes"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_run_that_does_not_serve_is_a_mistake_in_one_line(make_run, capsys, name):
    changes, words = MISTAKES[name]
    assert main([str(make_run(**changes))]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_is_no_run_is_a_mistake(tmp_path, capsys, content):
    if content:
        (tmp_path / "status.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--workers", "0"], ["--gbits", "0"], ["--gbits", "nan"], ["--lanes-total", "x"]])
def test_impossible_options_are_refused(option, capsys):
    with pytest.raises(SystemExit) as ending:
        main(["run", *option])
    assert ending.value.code == 2


def test_it_needs_neither_torch_nor_hydra():
    code = "import sys, mpirl.sizing; sys.exit(bool({'torch', 'hydra', 'mpi4py', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
