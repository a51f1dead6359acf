"""The entry: `python -m mpirl.main`, under mpirun or srun on every rank, or alone."""

from __future__ import annotations

import os
import sys
import time
import traceback

from mpirl import environment  # noqa: F401  (first: it says how torch is loaded)
from mpirl.config import Job, for_each_job
from mpirl.errors import AgreedError, RankFailed, RankSilent, UserError
from mpirl.session import PROGRAMS
from mpirl.transport.base import Group
from mpirl.transport.launcher import launched_rank, launched_size
from mpirl.transport.threads import run_threads


def main() -> None:
    """Run the job, or a sweep's jobs, in the world that the launcher made; exits with 0 only if all ended in order."""
    try:
        choice = transport_choice(sys.argv[1:])
        sys.exit(run_mpi() if choice == "mpi" else for_each_job(run_in_threads))
    except UserError as error:
        if not launched_rank(os.environ):
            say(str(error))
        else:
            time.sleep(1)  # a launcher ends the world at the first exit: let rank 0 speak
        sys.exit(2)


def transport_choice(arguments: list[str]) -> str:
    """"mpi" or "threads": what `transport=` says, else whether a launcher started this process.

    It is wanted before the config can be composed: under MPI only rank 0 composes it.
    """
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("transport=")]
    choice = given[-1] if given else "auto"
    if choice not in ("auto", "mpi", "threads"):
        raise UserError(f"transport={choice!r}: choose auto, mpi or threads")
    size = launched_size(os.environ)
    if choice == "threads" and (size or 1) > 1:
        raise UserError(f"transport=threads is a world in one process, the launcher started {size} ranks: drop one of the two")
    return ("threads" if size is None else "mpi") if choice == "auto" else choice


def run_in_threads(job: Job) -> int:
    """A world in this process."""
    return run_threads(job.config["ranks"], lambda group: run(job, group), job.config["deadline"])[0]


def run_mpi() -> int:
    """Rank 0 reads the command line and hands each job on; the others follow until there are no more."""
    from mpirl.transport import mpi

    group = mpi.world()
    code = 1
    if group.rank:
        while (job := group.exchange(None)[0]) is not None:
            code = run(job, group)
        group.close()
        return 0
    try:
        code = for_each_job(lambda job: run(group.exchange(job)[0], group))
    finally:
        group.exchange(None)
        group.close()
    return code


def run(job: Job, group: Group) -> int:
    """One rank's part in a job; its exit code. An exception on any rank ends the whole world."""
    group.deadline = job.config["deadline"]
    try:
        PROGRAMS[job.config["program"]](job.config, job.text, group)
        return 0
    except AgreedError as error:  # all ranks are here
        if group.rank == 0:
            say(str(error))
        return 2
    except Exception as error:
        end_world(error, group)
        return 1
    except KeyboardInterrupt:
        say(f"interrupted on rank {group.rank}")
        group.abort(130)
        return 130


def end_world(error: Exception, group: Group) -> None:
    """Have rank 0 say what happened, once, and end all ranks; if rank 0 does not, this rank does."""
    message = describe(error, group)
    group.fail(message)
    say(message)
    group.abort(1)


def describe(error: Exception, group: Group) -> str:
    """The user's mistakes and lost ranks in words, anything else with its traceback."""
    if isinstance(error, RankFailed):
        return error.report
    if isinstance(error, (UserError, RankSilent, FloatingPointError)):
        return str(error)
    return f"rank {group.rank} on host {group.host} failed:\n{''.join(traceback.format_exception(error)).rstrip()}"


def say(message: str) -> None:
    print(f"mpirl: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
