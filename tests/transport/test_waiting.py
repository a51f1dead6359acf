"""What counts as waiting, and what as having been stopped."""

from __future__ import annotations

import pytest

from mpirl.transport import waiting


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


def test_time_without_a_look_does_not_count(clock):
    looks = waiting.Looks(deadline=30.0)
    for _ in range(8):
        clock[0] += 0.5
        assert looks.start() == 100.0
    clock[0] += 1000.0  # stopped
    assert looks.start() == 1100.0
    clock[0] += 0.5
    assert clock[0] - looks.start() == 4.5, "what was waited before counts"


@pytest.mark.parametrize("deadline, longest", [(300.0, 1.0), (5.0, 0.5), (0.2, 0.1), (-2.0, 0.1)])
def test_a_short_deadline_knows_shorter_stops(deadline, longest):
    assert waiting.Looks(deadline).longest == longest
