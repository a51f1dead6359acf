"""Programs for test_startup.py in which ranks start late or not at all: `transport_startup.py SCENARIO`."""

from __future__ import annotations

import os
import sys
import time

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])


def late_process() -> None:
    """Rank 2 comes to MPI_Init when the others have waited for a while."""
    from mpirl.transport.mpi import world

    time.sleep(2 if RANK == 2 else 0)
    world(deadline=3.2).close()
    print(f"rank {RANK} is through")


def lost_process() -> None:
    """Rank 2 does not come to MPI_Init."""
    from mpirl.transport.mpi import world

    time.sleep(60 if RANK == 2 else 0)
    world(deadline=1.0)


def late_parts() -> None:
    """Ranks 1 and 2 take their time to build what they need; later they are slow again."""
    from mpirl.transport.mpi import world

    group = world()
    group.starting(4.0)
    time.sleep(1.6 if group.rank else 0)
    group.exchange(None)
    group.started(10.0)
    time.sleep(1.6 if group.rank else 0)
    group.exchange(None)
    group.close()
    print(f"rank {RANK} is through")


def errors_are_exceptions() -> None:
    """MPI's errors raise, although mpi4py did not initialize MPI; and MPI is finalized at the end."""
    from mpirl.transport.mpi import world

    group = world()
    try:
        group._comm.Send(bytearray(1), group.size + 9)
    except Exception as error:
        print(f"rank {RANK} raised {type(error).__name__}")
    group.close()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
