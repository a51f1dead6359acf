"""`python -m mpirl.replay RUN ...`: lists, shows, verifies, films and exports the episodes of an archive. Needs no torch."""

from __future__ import annotations

import os

for library in ("OMP", "OPENBLAS", "MKL"):  # before numpy is loaded: one process for each core plays
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mpirl import replay_archive, replay_data, replay_episodes, replay_pictures, replay_statistics, replay_steps, replay_verify
from mpirl.errors import UserError
from mpirl.transport.launcher import launched_rank

COMMANDS = (replay_episodes, replay_steps, replay_verify, replay_pictures, replay_statistics, replay_data, replay_archive)
"""Modules whose `add_to(commands)` adds a command: a parser, whose default `run` takes the options and returns the exit code.

Rank 0 alone runs it, unless the default `on_all_ranks` is True.
"""
EPILOG = """examples:
  python -m mpirl.replay runs/pong/1 list --sort return --reverse --limit 10 --where 'length>500'
  python -m mpirl.replay runs/pong/1 verify --sample 0.1
  mpirun -np 9 python -m mpirl.replay runs/pong/1 verify
  python -m mpirl.replay runs/pong/1 video 12 -o pong.mp4

exit code: 0; 1 if an episode cannot be played again as it is archived; 2 for a mistake"""


class Parser(argparse.ArgumentParser):
    """Tells a mistake as any other of the user's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help tells more")


def parser() -> Parser:
    """The program's arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    made = Parser("python -m mpirl.replay", description=__doc__, epilog=EPILOG, formatter_class=raw)
    made.add_argument("archive", metavar="RUN", type=Path, help="a run directory, or the folder of an archive")
    commands = made.add_subparsers(metavar="COMMAND", required=True, title="commands (COMMAND --help tells more)")
    for module in COMMANDS:
        module.add_to(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    rank = launched_rank(os.environ)
    try:
        options = parser().parse_args(arguments)
        if rank and not getattr(options, "on_all_ranks", False):
            return 0
        return options.run(options)
    except UserError as error:
        if rank is None:
            print(f"mpirl: {error}", file=sys.stderr)
            return 2
        from mpirl.main import leave

        leave(error, rank)  # ends this process
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`: what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
