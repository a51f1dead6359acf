"""What a rank needs of its surroundings, set before anything else is loaded: import this first."""

from __future__ import annotations

import ctypes
import os
import signal

SPINS = "2000"
"""How often a thread of torch looks for work before it sleeps. The default, 300,000, is fine on an idle machine only: as soon
as anything else wants the cores, waiting threads keep working ones from running, and training is 10 times slower."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEEP = 2**30


def prepare() -> None:
    """Limit spinning, and let malloc keep the memory of large tensors instead of mapping it anew for each (glibc only).

    Keeping it saves the page faults of every minibatch: 10 to 25 % of the time of training a convolutional network. numpy's
    BLAS gets one thread: it has little to do here, and else starts one for each core where numpy is loaded, in every rank,
    which all spin for a tenth of a second.
    USR1, "save and stop", waits until training has begun (`schedule.Signals`) instead of killing a rank that is starting.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's large tensors in huge pages: fewer page faults
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return
    mallopt(M_MMAP_THRESHOLD, KEEP)
    mallopt(M_TRIM_THRESHOLD, KEEP)


prepare()
