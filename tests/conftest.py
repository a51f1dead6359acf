"""What all tests share: MPI may run as root in a container, numeric libraries keep to one thread, INT is heard, and what
the programs that they start leave in TMPDIR and in /dev/shm goes with the session."""

import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests are small, and several ranks share the cores
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would all they start


def pytest_configure(config):
    """A TMPDIR of the session's own, short, for the programs that tests start; pytest's own folders stay where they were.

    An mpirun that was killed leaves a folder named by its process id there, and a later one that gets this id does not start
    ("The PMIx server's listener thread failed to start").
    """
    parent = tempfile.gettempdir()  # which this process remembers
    config.mpirl_tmpdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="mpirl-", dir=parent)
    config.mpirl_segments = segments()


def pytest_unconfigure(config):
    shutil.rmtree(config.mpirl_tmpdir, ignore_errors=True)
    if left := segments() - config.mpirl_segments:
        remove_unused(left)


def segments():
    """Open MPI's shared memory; ranks that were killed together with their mpirun leave theirs."""
    return set(Path("/dev/shm").glob("sm_segment.*"))


def remove_unused(files):
    """Remove the files that no process has mapped."""
    mapped = ""
    for process in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is another user's
            mapped += process.read_text()
    for file in files:
        with suppress(OSError):
            if str(file) not in mapped and file.stat().st_uid == os.getuid():
                file.unlink()
