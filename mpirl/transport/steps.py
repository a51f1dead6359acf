"""Step-wise messages between rank 0 and the workers: persistent requests under MPI, shared arrays among threads.

They go point-to-point: rank 0 knows from its own requests whose question is missing, so that no note has to tell it, and a
persistent request is set up once and started at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Condition
from typing import Any

import numpy as np

from mpirl.transport.base import Steps

TAG = 9000  # of slot 0

Wait = Callable[..., None]
Arrays = Sequence[np.ndarray]  # one per slot
Lanes = Sequence[Sequence[int]]  # by slot and rank
Peer = tuple[int, slice]  # a rank, and the rows of its lanes


def peers_of(rank: int, lanes: Sequence[int]) -> list[Peer]:
    """Whom a rank talks to in a slot with `lanes` of every rank: rank 0 to each that has lanes, those to rank 0."""
    rows = [slice(sum(lanes[:other]), sum(lanes[: other + 1])) for other in range(len(lanes))]
    if rank == 0:
        return [(other, rows[other]) for other in range(1, len(lanes)) if lanes[other]]
    return [(0, slice(0, lanes[rank]))] if lanes[rank] else []


class MpiSteps(Steps):
    """By requests of an mpi4py communicator on which nobody else uses tags from TAG on; `MPI` is the module mpi4py.MPI.

    wait(requests, what, awaited): until all are complete; `awaited()` names the ranks that are waited for.
    """

    def __init__(self, comm: Any, MPI: Any, wait: Wait, questions: Arrays, answers: Arrays, lanes: Lanes):
        rank = comm.Get_rank()
        incoming, outgoing = (questions, answers) if rank == 0 else (answers, questions)
        self._start, self._wait = MPI.Prequest.Startall, wait
        self._peers = [peers_of(rank, counts) for counts in lanes]
        wire = lambda array, rows: [array[rows], array[rows].nbytes, MPI.BYTE]
        make = lambda init, arrays: [
            [init(wire(arrays[slot], rows), peer, TAG + slot) for peer, rows in peers] for slot, peers in enumerate(self._peers)
        ]
        self._receives, self._sends = make(comm.Recv_init, incoming), make(comm.Send_init, outgoing)
        self._expected = [False for _ in lanes]

    def send(self, slot: int, reply: bool = True) -> None:
        if reply:
            self._expect(slot)
        self._start(self._sends[slot])

    def receive(self, slot: int) -> None:
        self._expect(slot)
        receives = self._receives[slot]
        awaited = lambda: [peer for (peer, _), request in zip(self._peers[slot], receives) if not request.Test()]
        self._wait([*receives, *self._sends[slot]], "acting", awaited=awaited)
        self._expected[slot] = False

    def close(self) -> None:
        for requests in (*self._receives, *self._sends):
            for request in requests:
                if request.Test():  # else the run has failed, and MPI may still write into its buffer
                    request.Free()
            requests.clear()

    def _expect(self, slot: int) -> None:
        """Let what comes in arrive while this rank does something else."""
        if not self._expected[slot]:
            self._start(self._receives[slot])
            self._expected[slot] = True


class Board:
    """What the ranks of a thread world share of their step-wise messages: rank 0's arrays, and how much was sent in them."""

    def __init__(self, questions: Arrays, answers: Arrays, size: int):
        self.questions, self.answers = questions, answers
        self.sent = [[0] * size for _ in questions]  # by slot and rank


class ThreadSteps(Steps):
    """By copies from and into rank 0's arrays. changed: notified of every message. wait(what, missing): as in ThreadGroup."""

    def __init__(
        self, rank: int, changed: Condition, wait: Wait, board: Board, questions: Arrays, answers: Arrays, lanes: Lanes
    ):
        self._rank, self._changed, self._wait, self._board = rank, changed, wait, board
        self._questions, self._answers = questions, answers
        self._peers = [peers_of(rank, counts) for counts in lanes]
        self._rows = [peers_of(0, counts) for counts in lanes]
        self._received = [0 for _ in lanes]

    def send(self, slot: int, reply: bool = True) -> None:
        if self._rank:
            self._board.questions[slot][self._place(slot)] = self._questions[slot]
        with self._changed:
            self._board.sent[slot][self._rank] += 1
            self._changed.notify_all()

    def receive(self, slot: int) -> None:
        sent, before = self._board.sent[slot], self._received[slot]
        self._wait("acting", lambda: [peer for peer, _ in self._peers[slot] if sent[peer] == before])
        if self._rank:
            self._answers[slot][...] = self._board.answers[slot][self._place(slot)]
        self._received[slot] += 1

    def close(self) -> None:
        """Nothing to give back."""

    def _place(self, slot: int) -> slice:
        """The rows of this rank's lanes in rank 0's arrays."""
        return dict(self._rows[slot])[self._rank]
