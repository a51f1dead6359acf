"""Telling: observers see every iteration, in order, a while later, also where the run fails."""

import pytest

from mpirl.observers.base import Observer, Telling


class Listener(Observer):
    def __init__(self, fails=False):
        self.heard, self.fails = [], fails

    def observe(self, report):
        self.heard.append(report.iteration)
        if self.fails:
            raise OSError("no space left")


@pytest.fixture
def listener():
    return Listener()


def test_a_report_waits_for_now(listener, make_report):
    with Telling([listener]) as telling:
        telling.now()
        telling.later(make_report(1))
        assert listener.heard == []
        telling.now()
        telling.now()
        assert listener.heard == [1]


def test_none_is_passed_over_and_the_last_is_told_at_the_end(listener, make_report):
    with Telling([listener]) as telling:
        telling.later(make_report(1))
        telling.later(make_report(2))
        assert listener.heard == [1]
    assert listener.heard == [1, 2]


def test_what_was_learned_before_a_failure_is_told(listener, make_report):
    with pytest.raises(RuntimeError, match="rank 2"), Telling([listener]) as telling:
        telling.later(make_report(1))
        raise RuntimeError("rank 2")
    assert listener.heard == [1]


def test_an_observer_that_fails_then_does_not_hide_the_failure(make_report):
    with pytest.raises(RuntimeError, match="rank 2"), Telling([Listener(fails=True)]) as telling:
        telling.later(make_report(1))
        raise RuntimeError("rank 2")


def test_an_observer_that_fails_at_an_orderly_end_is_heard(make_report):
    with pytest.raises(OSError, match="no space left"), Telling([Listener(fails=True)]) as telling:
        telling.later(make_report(1))
