"""What the step-wise messages of every transport promise, as functions that each rank of a group calls.

As a program, under mpirun: `steps_claims.py` checks all claims on the world of all ranks.
"""

from __future__ import annotations

import sys
import time
import traceback

import numpy as np

from mpirl.transport.base import Group


def slots_of(size: int) -> list[list[list[int]]]:
    """Lanes by slot and rank: equal, unequal, none on some ranks, none in a slot."""
    ranks = range(1, size)
    return [
        [[0, *(1 for _ in ranks)]],
        [[0, *(rank for rank in ranks)], [0, *(size - rank for rank in ranks)]],
        [[0, *(2 * (rank % 2) for rank in ranks)], [0, *(3 * (rank == size - 1) for rank in ranks)], [0] * size],
    ]


def play(group: Group, lanes: list[list[int]], turns: int, width: int, delay: float = 0.0) -> None:
    """Some turns in every slot: the answer to a question is the question + 1, the next question the answer + 1."""
    own = [counts[group.rank] if group.rank else sum(counts) for counts in lanes]
    questions = [np.zeros((count, width), np.uint8) for count in own]
    answers = [np.zeros((count, 5), np.uint8) for count in own]
    steps, used = group.steps(questions, answers, lanes), [slot for slot, count in enumerate(own) if count]
    for slot in used if group.rank else ():
        questions[slot][:] = group.rank
        steps.send(slot)
    for turn in range(turns):
        for slot in used:
            steps.receive(slot)
            expected = np.repeat(np.arange(group.size), lanes[slot]) if group.rank == 0 else np.full(own[slot], group.rank)
            found = questions[slot] if group.rank == 0 else answers[slot]
            assert (found == ((expected + 2 * turn + (group.rank > 0)) % 256)[:, None]).all(), (slot, turn, found[:, :3])
            if group.rank == 0:
                time.sleep(delay)
                answers[slot][:] = questions[slot][:, :5] + 1
                steps.send(slot, reply=turn < turns - 1)
            elif turn < turns - 1:
                questions[slot][:] = answers[slot][:, :1] + 1
                steps.send(slot)
    steps.close()
    steps.close()


def every_lane_gets_its_answer_at_every_turn(group: Group) -> None:
    for lanes in slots_of(group.size):
        play(group, lanes, turns=20, width=9)


def questions_may_be_long(group: Group) -> None:
    play(group, slots_of(group.size)[1], turns=3, width=300_000)


def other_messages_may_come_between_the_turns(group: Group) -> None:
    for turns in (1, 2, 3):
        play(group, slots_of(group.size)[1], turns, 9)
        array = np.full(3, turns if group.rank == 0 else 0)
        group.broadcast(array)
        assert (array == turns).all() and group.exchange(group.rank) == list(range(group.size))


def a_slow_learner_is_waited_for(group: Group) -> None:
    play(group, slots_of(group.size)[1], turns=3, width=9, delay=0.05)


CLAIMS = [
    every_lane_gets_its_answer_at_every_turn,
    questions_may_be_long,
    other_messages_may_come_between_the_turns,
    a_slow_learner_is_waited_for,
]


def main() -> None:
    from mpirl.transport.mpi import world

    group = world(deadline=20.0)
    try:
        for claim in CLAIMS:
            claim(group)
            sys.stdout.write(f"rank {group.rank} of {group.size}: {claim.__name__}\n")
            sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        group.abort(1)
    group.close()


if __name__ == "__main__":
    main()
