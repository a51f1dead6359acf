"""Small MPI messages between rank 0 and the others, beside the collectives: who has arrived, lives or failed.

A collective that does not complete says nothing about the reason; the notes tell rank 0 whom it waits for. Sending a
note never blocks.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

TAG = 7717
ALIVE, FAILED, CLOSED = 0, -1, -2  # a note is one int64: a collective's number (1, 2, ...) or one of these; and maybe text
RECEIVE_LIMIT = 4.0  # seconds; a long report takes a moment, or its sender is gone


class Notes:
    """The notes of one communicator. `comm` is an mpi4py communicator, `MPI` the module mpi4py.MPI, `host` this rank's.

    The first note says the host: `hosts` are those that rank 0 knows by now. On rank 0 `missing` lists the ranks that have
    not come to its present collective. `seen[rank]` is when a rank last gave a sign of life (time.monotonic). `failure` is
    (rank, report) of the first failure heard of.
    """

    def __init__(self, comm: Any, MPI: Any, host: str):
        self.comm = comm
        self.hosts: list[str | None] = [None] * comm.Get_size()
        self.hosts[comm.Get_rank()] = host
        self.failure: tuple[int, str] | None = None
        self.seen = [0.0] * comm.Get_size()
        self._MPI, self._host = MPI, host
        self._rank, self._number = comm.Get_rank(), 0
        self._arrived = [0] * comm.Get_size()
        self._peers = range(1, comm.Get_size()) if self._rank == 0 else range(1)
        self._closed: set[int] = set()  # those whose last note has come
        self._is_closing = False
        self.pending: list[Any] = []
        self._status = MPI.Status()

    def arrive(self) -> None:
        """This rank has come to its next collective."""
        self._number += 1
        if self._rank != 0:
            self._send(0, self._number, self._host if self._number == 1 else "")

    def beat(self) -> None:
        """This rank is alive: the others tell rank 0, rank 0 tells the others."""
        for rank in self._peers if not self._is_closing else ():
            self._send(rank, ALIVE)

    def close(self) -> None:
        """Send the last note. When `missing` is empty again no note is under way any more: one that is left unread when
        MPI ends makes MPICH kill the job.
        """
        self._is_closing = True
        for rank in self._peers:
            self._send(rank, CLOSED)

    def fail(self, report: str) -> None:
        """This rank has failed; not for rank 0."""
        self._send(0, FAILED, report)

    def progress(self) -> None:
        """Let MPI go on with what was sent."""
        self.pending = [request for request in self.pending if not request.Test()]

    def listen(self) -> None:
        """Take in the notes that have come."""
        while self.comm.Iprobe(self._MPI.ANY_SOURCE, TAG, self._status):
            self._receive(self._status.Get_source(), self._status.Get_count(self._MPI.BYTE))

    @property
    def missing(self) -> list[int]:
        """On rank 0, the ranks that have not come to its present collective; on others, rank 0 if it has to close yet."""
        if self._is_closing:
            return [rank for rank in self._peers if rank not in self._closed]
        return [rank for rank in self._peers if self._arrived[rank] < self._number] if self._rank == 0 else []

    def _send(self, to: int, number: int, text: str = "") -> None:
        self.progress()
        message = np.frombuffer(number.to_bytes(8, "little", signed=True) + text.encode("utf-8", "replace"), np.uint8)
        self.pending.append(self.comm.Isend([message, message.size, self._MPI.BYTE], to, TAG))

    def _receive(self, source: int, num_bytes: int) -> None:
        message = np.zeros(num_bytes, np.uint8)
        request = self.comm.Irecv([message, num_bytes, self._MPI.BYTE], source, TAG)
        end = time.monotonic() + RECEIVE_LIMIT
        while not request.Test():
            if time.monotonic() > end:
                self.pending.append(request)  # MPI may still write into its buffer
                self.failure = self.failure or (source, "(its report did not arrive)")
                return
            time.sleep(1e-4)
        number = int.from_bytes(message[:8].tobytes(), "little", signed=True)
        text = message[8:].tobytes().decode("utf-8", "replace")
        if number == FAILED:
            self.failure = self.failure or (source, text)
        if number == 1:
            self.hosts[source] = text
        if number == CLOSED:
            self._closed.add(source)
        self.seen[source] = time.monotonic()
        self._arrived[source] = max(self._arrived[source], number)
