"""A start that can be watched: what is said, when, and the limits; in a world of threads, and around MPI_Init."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

import pytest

from mpirl.errors import RankSilent
from mpirl.transport import startup
from mpirl.transport.startup import Rhythm, first_line, places, progress
from mpirl.transport.threads import ThreadGroup, run_threads


@pytest.mark.parametrize(
    "members, expected",
    [
        ([(7, "cpu4")], "cpu4 (rank 7)"),
        ([(5, "cpu3"), (6, "cpu3"), (7, "cpu4")], "cpu3 (ranks 5, 6), cpu4 (rank 7)"),
        ([(1, "a"), (3, "b"), (2, "a"), (4, "a"), (9, "a"), (3, "a")], "a (ranks 1-4, 9), b (rank 3)"),
        ([(2, None), (3, None)], "ranks 2, 3"),
    ],
)
def test_ranks_are_told_by_host_where_it_is_known(members: list[tuple[int, str | None]], expected: str) -> None:
    assert places(members) == expected


def test_progress_says_how_many_are_ready_and_for_whom_the_wait_is() -> None:
    text = progress(9, [(5, "cpu3"), (6, "cpu3")], 12.3)
    assert text == "6/8 workers ready, waiting for cpu3 (ranks 5, 6) for 12 s"


def test_when_nobody_is_missing_it_is_the_network() -> None:
    assert progress(3, [], 5.0) == "2/2 workers ready, waiting for the network between the hosts for 5 s"


def test_lines_come_at_5_10_20_40_seconds_and_then_every_30(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(startup.time, "monotonic", lambda: clock)
    rhythm, told = Rhythm(first_line(300.0)), []
    for clock in range(150):
        if rhythm.is_due():
            told.append(clock)
    assert told == [5, 10, 20, 40, 70, 100, 130]


def test_a_short_limit_has_its_first_line_sooner() -> None:
    assert first_line(8.0) == 2.0


def late(group: ThreadGroup, rank: int, seconds: float) -> None:
    """A start with a limit of 2 s in which one rank comes late."""
    group.starting(2.0)
    if group.rank == rank:
        time.sleep(seconds)
    group.exchange(None)


def test_rank_0_tells_whom_it_waits_for(capfd: pytest.CaptureFixture[str]) -> None:
    run_threads(4, lambda group: late(group, 2, 1.2))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert re.fullmatch(r"mpirl: 2/3 workers ready, waiting for [^,]+ \(rank 2\) for 0\.5\d* s", lines[0])


def test_nothing_is_said_when_all_are_ready_or_the_start_is_over(capfd: pytest.CaptureFixture[str]) -> None:
    def target(group: ThreadGroup) -> None:
        late(group, 1, 0.2)
        group.started(2.0)
        if group.rank == 1:
            time.sleep(0.8)
        group.exchange(None)

    run_threads(3, target)
    assert capfd.readouterr().err == ""


def test_limit_of_the_start_names_all_who_are_missing() -> None:
    release = threading.Event()

    def target(group: ThreadGroup) -> None:
        group.starting(0.4)
        if group.rank in (1, 3):
            release.wait(10)
        group.exchange(None)

    with pytest.raises(RankSilent, match=r"^start-up: no sign of [^,]+ \(ranks 1, 3\) after 0\.4 s\..*startup_deadline="):
        run_threads(4, target)
    release.set()


def test_after_the_start_the_deadline_of_the_run_counts() -> None:
    def target(group: ThreadGroup) -> None:
        group.starting(20.0)
        group.exchange(None)
        group.started(0.3)
        if group.rank == 1:
            time.sleep(1.5)
        group.exchange(None)

    with pytest.raises(RankSilent, match="^exchange: no sign of rank 1 on host .* for 0.3 s"):
        run_threads(2, target)


def in_init(environ: dict[str, str], deadline: float, seconds: float) -> tuple[int, list[str]]:
    """Exit code and lines of a process that spends so many seconds in MPI_Init."""
    loads = "import time; from mpirl.transport.startup import watched_init"
    code = f"{loads}\nwith watched_init({environ}, {deadline}): time.sleep({seconds})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stderr.splitlines()


def test_rank_0_tells_of_a_long_init_and_of_the_hosts_that_slurm_names() -> None:
    srun = {"SLURM_STEP_NUM_TASKS": "9", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "gpu0,cpu[1-4]"}
    code, lines = in_init(srun, 2.0, 0.8)
    assert (code, len(lines)) == (0, 1)
    assert re.fullmatch(r"mpirl: waiting in MPI_Init for 0\.[5-9]\d* s: not all of the 9 ranks .* \(hosts: gpu0,cpu\[1-4\]\)", lines[0])


def test_init_ends_at_the_limit_and_says_what_to_look_at() -> None:
    code, lines = in_init({"PMI_SIZE": "3", "PMI_RANK": "0"}, 0.4, 10)
    assert code == 1
    [last] = [line for line in lines if "start-up" in line]
    assert re.search(r"MPI_Init has not returned on rank 0 after [\d.]+ s: not all of the 3 ranks have started", last)
    assert "mpirl.placement --check" in last and "startup_deadline=" in last


def test_other_ranks_leave_the_word_to_rank_0() -> None:
    assert in_init({"PMI_SIZE": "3", "PMI_RANK": "2"}, 0.4, 1.0) == (0, [])
