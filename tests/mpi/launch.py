"""Starts Python programs under mpirun for tests, and leaves no process behind."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen

import pytest

from mpirl.transport.launcher import scrubbed

ROOT = Path(__file__).resolve().parents[2]


def mpirun(n: int, args: Sequence[str], timeout: float = 60.0, env: Mapping[str, str] | None = None) -> CompletedProcess:
    """Run `python *args` on n ranks and return its exit code, stdout and stderr (text).

    env: variables to add. Raises subprocess.TimeoutExpired after `timeout` seconds; then all its processes are killed.
    """
    process = start(n, args, env)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        end(process)
    return CompletedProcess(process.args, process.returncode, stdout, stderr)


def start(n: int, args: Sequence[str], env: Mapping[str, str] | None = None) -> Popen:
    """Start `python *args` on n ranks in a session of its own; finish with `end`. For tests that send signals."""
    command = [*launcher(), "-np", str(n), sys.executable, *map(str, args)]
    return Popen(command, env=environment(env), cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True)


def end(process: Popen) -> None:
    """Kill what is left of the process, its ranks included, by their ids."""
    if process.poll() is None:
        process.terminate()  # lets mpirun kill its ranks and tidy up
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
    signal_all(process, signal.SIGKILL)
    process.wait()


def signal_all(process: Popen, number: int) -> None:
    """Send a signal to the process and to all others of its session, by their ids."""
    for pid in survivors(process):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def survivors(process: Popen, patience: float = 0.0) -> list[int]:
    """Ids of the session's processes that live, after waiting at most `patience` seconds for them to go."""
    limit = time.monotonic() + patience
    while (alive := _session(process.pid)) and time.monotonic() < limit:
        time.sleep(0.05)
    return alive


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until the condition holds; a file or a key that is not there yet is no error."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if condition():
                return
        except (FileNotFoundError, KeyError):
            pass
        time.sleep(0.05)
    raise AssertionError("what was waited for did not come")


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment for a fresh mpirun: no launcher's variables, root allowed if we are root, plus `env`."""
    result = scrubbed(os.environ)
    result["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if os.geteuid() == 0:
        result |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return result | dict(env or {})


def launcher() -> list[str]:
    """mpirun and its options here. Skips the test where MPI is not installed; fails it in CI."""
    command, reason = _launcher()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return command


@functools.cache
def _launcher() -> tuple[list[str], str]:
    """(mpirun and its options, why it cannot be used or "")."""
    beside = Path(sys.executable).parent / "mpirun"  # the executable's link is not followed: it names the environment
    path = str(beside) if beside.exists() else shutil.which("mpirun")
    if path is None:
        return [], "no mpirun beside this python or on the PATH"
    if importlib.util.find_spec("mpi4py") is None:
        return [], "mpi4py is not installed"
    version = subprocess.run([path, "--version"], env=environment(), capture_output=True, text=True, timeout=30).stdout
    is_open_mpi = "Open MPI" in version or "OpenRTE" in version or "PRRTE" in version
    return [path, *(["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"] if is_open_mpi else [])], ""


def _session(session: int) -> list[int]:
    """Ids of the living processes of a session: ranks have process groups of their own, but share the session."""
    pids = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = status.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):  # it has gone
            continue
        if int(sid) == session and state != "Z":
            pids.append(int(status.parent.name))
    return pids
