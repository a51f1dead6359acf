"""The command `verify`: plays an archive's episodes again on all cores, or on all ranks, and tells where they diverge."""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from mpirl.agreement import agree
from mpirl.archive.reader import Segment
from mpirl.errors import AgreedError, UserError
from mpirl.progress import Progress
from mpirl.reemulation import Emulators, Tally, verify
from mpirl.replay_episodes import archive_of
from mpirl.replay_work import Batch, Choice, Work, plan
from mpirl.transport.base import Group
from mpirl.transport.launcher import PR_SET_PDEATHSIG, launched_size
from mpirl.transport.startup import say


def add_to(commands: Any) -> None:
    """Add this command to the program's."""
    parser = commands.add_parser("verify", help="play episodes again and compare; exit code 1 for a divergence")
    parser.add_argument("--episodes", type=int, nargs="+", metavar="ID", help="only these")
    parser.add_argument("--sample", type=sample_size, metavar="N", help="only so many, drawn at random; or a fraction, as 0.1")
    parser.add_argument("--jobs", type=positive, metavar="N", help="processes (default: one for each core)")
    parser.set_defaults(run=run, on_all_ranks=True)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: write 1 or more")
    return number


def sample_size(text: str) -> int | float:
    """A number of episodes, or a float for a fraction of them."""
    number = int(text) if text.isdecimal() else float(text)
    if number <= 0 or isinstance(number, float) and number > 1:
        raise argparse.ArgumentTypeError(f"{text}: write a number of episodes, or a fraction such as 0.1")
    return number


def run(options: argparse.Namespace) -> int:
    """The exit code."""
    if launched_size(os.environ) is not None:
        return run_on_ranks(options)
    jobs = options.jobs or len(os.sched_getaffinity(0))
    work = plan(archive_of(options.archive), jobs, options.episodes, options.sample)
    jobs = min(jobs, len(work.batches))
    with closing(Progress(work.steps, "steps")) as progress:
        tally = play(work, work.batches, progress.add) if jobs == 1 else play_on_cores(work, jobs, progress)
    return report(work, tally)


def run_on_ranks(options: argparse.Namespace) -> int:
    """* Every rank plays its share; rank 0 prints. The exit code, on all ranks alike."""
    from mpirl.main import ending_the_world
    from mpirl.transport import mpi

    group = mpi.world()
    try:
        with ending_the_world(group):
            _, plans = agree(group, lambda: plan_for_ranks(options, group) if group.rank == 0 else None, lambda work: work)
            work: Work = plans[0]
            agree(group, lambda: try_emulators(work))
            share = work.batches[group.rank :: group.size]
            steps = sum(stretch.steps for batch in share for stretch in batch)
            progress = Progress(steps, f"steps of rank {group.rank}", live=False, quiet=group.rank > 0)
            tally = Tally()
            for part in group.exchange(play(work, share, lambda number: (progress.add(number), group.heartbeat()))):
                tally.add(part)
        return report(work, tally, quiet=group.rank > 0)
    except AgreedError as error:  # all ranks are here
        if group.rank == 0:
            say(str(error))
        return 2
    finally:
        with ending_the_world(group):
            group.close()


def plan_for_ranks(options: argparse.Namespace, group: Group) -> Work:
    if (options.jobs or 1) > 1:
        raise UserError(f"--jobs {options.jobs}: under mpirun every rank is one process; start more ranks instead")
    return plan(archive_of(options.archive), group.size, options.episodes, options.sample, group.heartbeat)


def play(work: Work, batches: Iterable[Batch], alive: Callable[[int], Any]) -> Tally:
    """Verify in this process."""
    tally = Tally()
    with Emulators() as emulators:
        for batch in batches:
            for stretch in batch:
                tally.add(verify(stretch, emulators, work.chosen, alive))
    return tally


def play_on_cores(work: Work, jobs: int, progress: Progress) -> Tally:
    """Verify in processes of their own."""
    context, tally = multiprocessing.get_context("spawn"), Tally()
    with ProcessPoolExecutor(jobs, context, initializer=end_with_parent) as pool:
        futures = {pool.submit(play_batch, batch, work.chosen): batch for batch in work.batches}
        try:
            for future in as_completed(futures):
                tally.add(future.result())
                progress.add(sum(stretch.steps for stretch in futures[future]))
        except BrokenProcessPool as error:
            raise UserError("a process that played was killed: not enough memory? Fewer --jobs need less") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return tally


def play_batch(batch: Batch, chosen: Choice) -> Tally:
    return play(Work([batch], chosen, []), [batch], lambda steps: None)


def end_with_parent() -> None:
    """Have Linux kill this process with its parent, and leave Ctrl-C to that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def try_emulators(work: Work) -> None:
    """Make an emulator, so that a host that lacks a package is known before it begins."""
    stretch = work.batches[0][0]
    with Emulators() as emulators, Segment(stretch.pieces[0].path) as segment:
        emulators.like(segment, stretch.lane)


def report(work: Work, tally: Tally, quiet: bool = False) -> int:
    """Print what was found; the exit code."""
    lines = []
    if tally.divergences:
        first = min(tally.divergences)
        lines += [
            f"divergence: episode {first.episode}, step {first.step}, {first.field}: "
            f"{first.stored} in the archive, {first.played} played again",
            f"  lane {first.lane}, iteration {first.iteration}, t = {first.t}, {first.segment}",
        ]
        more = len(tally.divergences) - 1
        lines += [f"  {more:,} more after later seed points or in other lanes"] if more else []
    equal = "equal up to there and elsewhere" if tally.divergences else "all equal"
    lines.append(f"verified {tally.episodes:,} whole episodes, {tally.steps:,} steps: {equal}")
    if not quiet:
        print("\n".join(lines + work.notes), flush=True)
    return 1 if tally.divergences else 0
