"""The entry: `python -m mpirl.main`, under mpirun or srun on every rank, or alone.

Torch and Hydra take seconds to load, minutes from a cold network file system. So under a launcher MPI comes first: then
rank 0 sees who is late, and hears what is missing on which host.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from mpirl import environment  # noqa: F401  (first: it says how torch is loaded)
from mpirl.errors import AgreedError, RankFailed, RankSilent, UserError
from mpirl.heap import restart_without_tcache
from mpirl.milestones import Milestones
from mpirl.transport.launcher import end_stuck_launcher, launched_rank, launched_size
from mpirl.transport.startup import HostError, say

if TYPE_CHECKING:  # until `load` has been called, little is there
    from mpirl.job import Job
    from mpirl.transport.base import Group

STARTUP_DEADLINE = 300.0  # seconds; of MPI_Init, unless the command line says otherwise


def main() -> None:
    """Run the job, or a sweep's jobs, in the world that the launcher made; exits with 0 only if all ended in order."""
    try:
        choice = transport_choice(sys.argv[1:])
        sys.exit(run_mpi() if choice == "mpi" else run_alone())
    except UserError as error:
        leave(error, launched_rank(os.environ))


def leave(error: UserError, rank: int | None) -> None:
    """End this process for a mistake. It is printed once for the whole job: by rank 0, unless that may know nothing of it."""
    if rank:
        time.sleep(min(5.0, 1 + rank / 2))  # a launcher ends the world at the first exit: let the lowest rank speak
    is_local = isinstance(error, HostError)
    if is_local or not rank:
        say(f"rank {rank}: {error}" if rank else str(error))
    if is_local and "HYDI_CONTROL_FD" in os.environ:
        os.kill(os.getpid(), signal.SIGTERM)  # MPICH's launcher lets the others wait for a rank that has just exited
    sys.exit(2)


def transport_choice(arguments: list[str]) -> str:
    """"mpi" or "threads": what `transport=` says, else whether a launcher started this process.

    It is wanted before the config can be composed: under MPI only rank 0 composes it.
    """
    choice = given(arguments, "transport", "auto")
    if choice not in ("auto", "mpi", "threads"):
        raise UserError(f"transport={choice!r}: choose auto, mpi or threads")
    size = launched_size(os.environ)
    if choice == "threads" and (size or 1) > 1:
        raise UserError(f"transport=threads is a world in one process, the launcher started {size} ranks: drop one of the two")
    return ("threads" if size is None else "mpi") if choice == "auto" else choice


def startup_deadline(arguments: list[str]) -> float:
    """Seconds that MPI_Init may take. A value that is no number of seconds is told of when the config is composed."""
    try:
        seconds = float(given(arguments, "startup_deadline", ""))
    except ValueError:
        return STARTUP_DEADLINE
    return seconds if 0 < seconds < float("inf") else STARTUP_DEADLINE


def given(arguments: list[str], key: str, default: str) -> str:
    """The last value of key=value on the command line."""
    pairs = (argument.lstrip("+").partition("=") for argument in arguments)
    return ([default] + [value for name, _, value in pairs if name == key])[-1]


def load(*modules: str) -> None:
    """Import modules of mpirl. Raises HostError if something that they need is not installed here.

    What they load stays to the end: looking for garbage in it, now and at the end, would take a third of the time of loading.
    """
    gc.disable()
    try:
        for module in modules:
            import_module(module)
    except ModuleNotFoundError as error:
        mend = f"install it there for {sys.executable}, or start every rank with the same python"
        raise HostError(str(error), mend) from error
    finally:
        gc.freeze()
        gc.enable()


def load_programs(rank: int) -> None:
    """What this rank needs: rank 0 alone composes configs and writes archives."""
    load(*(("mpirl.config", "mpirl.archive.writer") if rank == 0 else ()), "mpirl.programs")


def run_alone() -> int:
    """A world of threads in this process."""
    load_programs(0)
    from mpirl.config import for_each_job
    from mpirl.transport.threads import run_threads

    def run_in_threads(job: Job) -> int:
        return run_threads(job.config["ranks"], lambda group: run(job, group), job.config["startup_deadline"])[0]

    return for_each_job(run_in_threads)


def run_mpi() -> int:
    """This rank's part in the world that the launcher made."""
    milestones = Milestones()
    milestones.reach("interpreter")
    load("mpirl.transport.mpi")
    from mpirl.agreement import agree
    from mpirl.transport import mpi

    deadline = startup_deadline(sys.argv[1:])
    group = mpi.world(deadline, given(sys.argv[1:], "placement.learner", ""))
    group.starting(deadline)
    group.milestones = milestones
    milestones.reach("MPI")
    try:
        with ending_the_world(group):
            agree(group, lambda: load_programs(group.rank))
            milestones.reach("libraries")
        return follow(group) if group.rank else lead(group)
    finally:
        with ending_the_world(group):
            group.close()


def lead(group: Group) -> int:
    """Rank 0 reads the command line and hands each job on, and at the end None."""
    from mpirl.config import for_each_job

    try:
        return for_each_job(lambda job: run(hand_on(job, group), group))
    finally:
        hand_on(None, group)


def follow(group: Group) -> int:
    """The other ranks do what rank 0 hands on, until there is no more."""
    while (job := hand_on(None, group)) is not None:
        run(job, group)
    return 0


def hand_on(job: Job | None, group: Group) -> Job | None:
    """* Rank 0's job, on all ranks."""
    with ending_the_world(group):
        return group.exchange(job)[0]


def run(job: Job, group: Group) -> int:
    """One rank's part in a job; its exit code."""
    from mpirl.programs import program

    try:
        with ending_the_world(group):
            group.starting(job.config["startup_deadline"])
            group.milestones.reach("config")
            program(job.config)(job.config, job.text, group)
        return 0
    except AgreedError as error:  # all ranks are here
        if group.rank == 0:
            say(str(error))
        return 2


@contextmanager
def ending_the_world(group: Group) -> Iterator[None]:
    """An exception inside, on any rank, ends the whole world; but for one that all ranks raise alike."""
    try:
        yield
    except AgreedError:
        raise
    except Exception as error:
        end_world(error, group)
    except KeyboardInterrupt:
        say(f"interrupted on rank {group.rank}")
        group.abort(130)


def end_world(error: Exception, group: Group) -> None:
    """Have rank 0 say what happened, once, and end all ranks; if rank 0 does not, this rank does."""
    message = describe(error, group)
    group.fail(message)
    say(message)
    if isinstance(error, RankSilent):  # a host may have gone, which mpirun would wait for
        end_stuck_launcher(os.environ)
    group.abort(1)


def describe(error: Exception, group: Group) -> str:
    """The user's mistakes and lost ranks in words, anything else with its traceback."""
    if isinstance(error, RankFailed):
        return error.report
    if isinstance(error, (UserError, RankSilent, FloatingPointError)):
        return str(error)
    return f"rank {group.rank} on host {group.host} failed:\n{''.join(traceback.format_exception(error)).rstrip()}"


if __name__ == "__main__":
    restart_without_tcache()
    main()
