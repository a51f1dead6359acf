"""Step-wise messages among threads; those under mpirun are in tests/mpi/test_central_mpi.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mpirl.errors import RankFailed, RankSilent, UserError
from mpirl.transport.base import Group
from mpirl.transport.steps import peers_of
from mpirl.transport.threads import run_threads

sys.path.insert(0, str(Path(__file__).parents[1] / "mpi"))
from steps_claims import CLAIMS  # noqa: E402


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_claims_hold_in_threads(claim, size: int) -> None:
    run_threads(size, claim, deadline=20.0)


def test_ranks_without_lanes_in_a_slot_talk_to_nobody_there() -> None:
    assert peers_of(0, [0, 2, 0, 3]) == [(1, slice(0, 2)), (3, slice(2, 5))]
    assert peers_of(2, [0, 2, 0, 3]) == [] and peers_of(3, [0, 2, 0, 3]) == [(0, slice(0, 3))]


def one_turn(group, does) -> None:
    """Rank 0 waits for the questions of two ranks; rank 2 does something else first."""
    rows = np.zeros((2 if group.rank == 0 else 1, 4), np.uint8)
    steps = group.steps([rows], [rows.copy()], [[0, 1, 1]])
    if group.rank == 2:
        does()
    if group.rank:
        steps.send(0)
    steps.receive(0)


def test_the_rank_whose_question_is_missing_is_named() -> None:
    with pytest.raises(RankSilent, match="acting: no sign of rank 2 on host [^,]* for 0.3 s"):
        run_threads(3, lambda group: one_turn(group, lambda: time.sleep(1)), deadline=0.3)


def test_a_failure_of_a_rank_ends_the_wait_for_its_question() -> None:
    def fails() -> None:
        raise RuntimeError("the emulator burst")

    with pytest.raises(RankFailed, match="the emulator burst"):
        run_threads(3, lambda group: one_turn(group, fails), deadline=20)


def test_a_transport_without_them_says_so() -> None:
    with pytest.raises(UserError, match="Other has no step-wise messages, which policy=central needs"):
        Group.steps(type("Other", (), {})(), [], [], [])
