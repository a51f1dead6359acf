"""The console: one line per iteration, a summary at the end."""

import io

import pytest

from mpirl.observers.base import Outcome
from mpirl.observers.console import Console, clock, number


@pytest.fixture
def stream():
    return io.StringIO()


def test_an_iteration_is_one_line(stream, make_report):
    Console(stream).observe(make_report(4))
    assert stream.getvalue() == (
        "iteration 4 | steps 400/1,000 | 50 steps/s | return 5.00 | collect 1.50 s, learn 2.00 s | ETA 0:00:12 | dropped 10\n"
    )


def test_an_evaluation_joins_its_line(stream, make_report):
    Console(stream).observe(make_report(4, evaluation={"mean_reward": 7.5}))
    assert "| return 5.00 | evaluation 7.50 | collect" in stream.getvalue() and stream.getvalue().count("\n") == 1


def test_before_the_first_episode_the_return_is_a_dash(stream, make_report):
    Console(stream).observe(make_report(mean_return=None, mean_length=None))
    assert "| return - |" in stream.getvalue()


def test_lines_can_be_rarer_but_evaluations_are_always_told(stream, make_report):
    console = Console(stream, every=3)
    for iteration in range(1, 8):
        console.observe(make_report(iteration, evaluation={"mean_reward": 1.0} if iteration == 4 else None))
    assert [line.split(" |")[0] for line in stream.getvalue().splitlines()] == ["iteration 3", "iteration 4", "iteration 6"]


def test_the_summary_states_outcome_speed_return_and_accounts(stream, make_report):
    console = Console(stream, every=100)
    console.observe(make_report(9))
    console.observe(make_report(10))
    console.close(Outcome("finished", "total_steps reached"))
    assert stream.getvalue().splitlines() == [
        "finished: total_steps reached",
        "  iterations 10, episodes 30, time 0:00:44, 50 steps/s",
        "  mean return of the last 100 episodes 12.50, mean length 9.00",
        "  steps: collected 1,000 = gathered 1,000, learned 990, archived 1,000, dropped 10 too old",
    ]


def test_a_run_without_an_iteration_still_says_how_it_ended(stream):
    Console(stream).close(Outcome("failed", "RankFailed: rank 2"))
    assert stream.getvalue() == "failed: RankFailed: rank 2\n"


def test_it_prints_to_standard_output_by_default(capsys, make_report):
    Console().observe(make_report(2))
    assert capsys.readouterr().out.startswith("iteration 2 |")


def test_numbers_and_times_for_people(make_report):
    assert (number(None), number(-1.0)) == ("-", "-1.00")
    assert (clock(3725.4), clock(90061), clock(1e12)) == ("1:02:05", "1 day, 1:01:01", "-")
    assert make_report(10).eta == 0 and clock(make_report(1, fps=0.0).eta) == "-"
