"""The schedule: rank 0 decides, everyone obeys, and signals end a run in order."""

import os
import signal
from types import SimpleNamespace

import pytest

from mpirl import schedule as schedule_module
from mpirl.schedule import Command, Schedule, Signals
from mpirl.transport.threads import run_threads


def counters(iteration=0, version=0, steps=0, behind=0):
    return SimpleNamespace(iteration=iteration, version=version, steps=steps, behind=behind)


@pytest.mark.parametrize("command", [Command(1, 0), Command(2**40, 2**33, 1, True, False, True), Command(3, 2, save=True)])
def test_a_command_survives_the_wire(command):
    assert Command.decode(command.encode()) == command


def test_due_dates_are_every_so_many_iterations():
    schedule = Schedule(10**9, evaluate_every=3, save_every=5)
    commands = [schedule.decide(counters(iteration, version=iteration)) for iteration in range(15)]
    assert [command.iteration for command in commands] == list(range(1, 16))
    assert [command.version for command in commands] == list(range(15))
    assert [command.iteration for command in commands if command.evaluate] == [3, 6, 9, 12, 15]
    assert [command.iteration for command in commands if command.save] == [5, 10, 15]
    assert not any(command.stop or command.lag for command in commands)


def test_an_interval_of_0_is_never_due():
    schedule = Schedule(10**9)
    assert not any(schedule.decide(counters(iteration)).save for iteration in range(10))
    assert not any(schedule.decide(counters(iteration)).evaluate for iteration in range(10))


def test_a_run_finishes_when_its_steps_are_done():
    schedule = Schedule(100)
    assert not schedule.decide(counters(1, 1, 99)).stop and not schedule.finished
    assert schedule.decide(counters(2, 2, 100)).stop and schedule.finished


def test_a_run_stops_at_its_time_limit_without_being_finished(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(schedule_module.time, "monotonic", lambda: now[0])
    schedule = Schedule(100, max_time=10)
    now[0] = 59.9
    assert not schedule.decide(counters()).stop
    now[0] = 60.0
    assert schedule.decide(counters()).stop
    assert schedule.stop_reason == "max_time of 10 s reached" and not schedule.finished


def test_the_first_reason_to_stop_stands():
    schedule = Schedule(100)
    schedule.request_stop("signal TERM")
    assert schedule.decide(counters(steps=100)).stop
    assert schedule.stop_reason == "signal TERM"


def test_all_ranks_see_the_commands_that_rank_0_decides():
    def rank(group):
        learner = counters() if group.rank == 0 else None
        schedule = Schedule(30 if group.rank == 0 else 10**9, evaluate_every=2 if group.rank == 0 else 1)
        seen = []
        for command in schedule.commands(group, learner):
            seen.append(command)
            if learner:
                learner.iteration, learner.version, learner.steps = command.iteration, command.version + 1, learner.steps + 10
        return seen

    results = run_threads(3, rank, deadline=20)
    assert results[0] == [Command(1, 0), Command(2, 1, evaluate=True), Command(3, 2)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("number", Signals.NUMBERS)
def test_a_signal_stops_the_run_after_the_iteration(number):
    schedule = Schedule(100)
    with Signals(schedule):
        os.kill(os.getpid(), number)
        assert schedule.decide(counters()).stop
    assert schedule.stop_reason == f"signal {number.name}" and not schedule.finished


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), Signals(Schedule(100)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_workers_leave_signals_to_rank_0():
    with Signals(None):
        for number in Signals.NUMBERS:
            os.kill(os.getpid(), number)


def test_handlers_come_back_afterwards():
    before = [signal.getsignal(number) for number in Signals.NUMBERS]
    with Signals(Schedule(100)):
        assert [signal.getsignal(number) for number in Signals.NUMBERS] != before
    assert [signal.getsignal(number) for number in Signals.NUMBERS] == before
