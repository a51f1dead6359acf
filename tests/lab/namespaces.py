"""Linux namespaces: the walls between the lab's hosts, and starting processes inside them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

KINDS = ("net", "uts", "ipc", "mnt")
UNSHARE = ("unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
CLONE_NEWPID = 0x20000000

libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """The lab cannot be built, or one of its commands failed."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Raises LabError when the condition does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)


def setns(handle: int, kind: int = 0) -> None:
    """Moves the calling thread (for CLONE_NEWPID: its future children) into a namespace."""
    if libc.setns(handle, kind):
        raise OSError(ctypes.get_errno(), "setns")


class Namespaces:
    """A set of namespaces that ends with its first process: the kernel kills all others in it, and drops links and mounts.

    That first process lives as long as a pipe that this process holds. So nothing outlives this process, however it ends.
    """

    def __init__(self, script: str, *arguments: str, within: Namespaces | None = None, prefix: Sequence[str] = ()) -> None:
        """script: shell commands to prepare the namespaces. prefix: a command that enters a network and runs the rest."""
        self._started: list[subprocess.Popen] = []
        command = [*prefix, *UNSHARE, "sh", "-ec", script + "\necho ready\ncat >/dev/null\ntrue", "lab", *arguments]
        options: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.init = within.popen(command, **options) if within else subprocess.Popen(command, start_new_session=True, **options)
        assert self.init.stdout
        words = self.init.stdout.readline()
        if words != "ready\n":
            raise LabError(f"no namespaces: {(words + self.init.communicate()[0]).strip()}")
        self._handles = [os.open(f"/proc/{self.init.pid}/ns/{kind}", os.O_RDONLY) for kind in KINDS]
        self._children = os.open(f"/proc/{self.init.pid}/ns/pid_for_children", os.O_RDONLY)
        self.network = os.readlink(f"/proc/{self.init.pid}/ns/net")

    def popen(self, command: Sequence[str], cwd: str = "/", **options: Any) -> subprocess.Popen:
        """Starts a command inside, in a session of its own. The process id is the one seen from outside."""

        def enter() -> None:
            for handle in self._handles:
                setns(handle)
            os.chdir(cwd)

        with self._children_go_inside():
            process = subprocess.Popen(command, preexec_fn=enter, start_new_session=True, **options)
        self._started = [earlier for earlier in self._started if earlier.returncode is None] + [process]
        return process

    @contextlib.contextmanager
    def _children_go_inside(self) -> Iterator[None]:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        try:
            setns(self._children, CLONE_NEWPID)
            yield
        finally:
            setns(own, CLONE_NEWPID)
            os.close(own)

    def run(self, *command: str, input: str = "") -> str:
        """Runs a short command inside and returns its output. Raises LabError with its words when it fails."""
        pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with self.popen(command, **pipes) as process:
            output = process.communicate(input)[0]
        if process.returncode:
            raise LabError(f"{' '.join(command)}: {output.strip()}")
        return output

    def processes(self) -> dict[int, str]:
        """Process ids (as seen from outside) with command lines of what runs in this network, apart from what holds it up."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it ended while we looked
                if self._holds(pid) and os.getsid(int(pid)) != self.init.pid:
                    found[int(pid)] = self._command(pid)
        return found

    def _holds(self, pid: str) -> bool:
        return os.readlink(f"/proc/{pid}/ns/net") == self.network

    def _command(self, pid: str) -> str:
        """Its command line, which is empty for a moment while it executes another command, and while it ends. OSError: ended."""
        command, end = "", time.monotonic() + 1
        while not command and self._holds(pid) and time.monotonic() < end:
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return command

    def _all_are_buried(self) -> bool:
        for process in self._started:  # the first process ends when the others were waited for, by us if we started them
            process.poll()
        return self.init.poll() is not None

    def end(self) -> None:
        """Kills every process inside, and returns when they are gone."""
        assert self.init.stdin and self.init.stdout
        self.init.stdin.close()
        wait_until(self._all_are_buried, "the end of its processes", 10)
        self.init.stdout.close()
        for handle in (*self._handles, self._children):
            os.close(handle)
