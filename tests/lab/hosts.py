"""One host of the lab: its own name, address, processes, temporary files and sshd. All else it shares, like a lab with NFS."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from namespaces import LabError, Namespaces, wait_until

HOME = "/run/lab"  # the lab's own folder: in memory, and only its hosts see it
HELPERS = ("sshd:", "slurmd", "slurmstepd")  # processes that the daemons start

PREPARE = """
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /run/tmp
"""


class Host:
    """A host of the lab: `site` holds its network, which stays when the host loses power."""

    def __init__(self, name: str, address: str, site: Namespaces) -> None:
        self.name, self.address, self._site = name, address, site
        self._port = "port" + address.rpartition(".")[2]  # of the switch
        self.daemons: dict[str, subprocess.Popen] = {}
        self.inside: Namespaces | None = None
        self._hidden: list[str] = []
        site.run("ip", "netns", "add", name)
        site.run("ip", "link", "add", "name", self._port, "type", "veth", "peer", "name", "eth0", "netns", name)
        site.run("ip", "link", "set", "dev", self._port, "master", "lab", "up")
        for words in (f"address add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            site.run("ip", "-n", name, *words.split())

    def boot(self) -> None:
        """Brings the host up, with sshd."""
        assert self.inside is None, f"{self.name} is up"
        self.inside = Namespaces(PREPARE, self.name, within=self._site, prefix=("ip", "netns", "exec", self.name))
        self.start_sshd()

    def kill(self) -> None:
        """Kills all processes of the host at once."""
        assert self.inside, f"{self.name} is down"
        self.inside.end()
        for daemon in self.daemons.values():
            daemon.wait()
        self.inside, self.daemons, self._hidden = None, {}, []

    def daemon(self, port: int, name: str, *command: str) -> None:
        """Starts a daemon, which logs to HOME/log/<name>.<host>, and waits until its port is open."""
        self.daemons[name] = daemon(self.up, f"{name}.{self.name}", *command)
        wait_until(lambda: self._listens(port), f"{name} on {self.name}")

    @property
    def up(self) -> Namespaces:
        """Where its processes run."""
        if self.inside is None:
            raise LabError(f"{self.name} is down: boot it first")
        return self.inside

    def processes(self) -> dict[int, str]:
        """Process ids with command lines, without the host's own daemons."""
        found = self.inside.processes() if self.inside else {}
        own = {daemon.pid for daemon in self.daemons.values()}
        return {pid: command for pid, command in found.items() if pid not in own and not command.startswith(HELPERS)}

    def start_sshd(self) -> None:
        self.daemon(22, "sshd", "/usr/sbin/sshd", "-D", "-e", "-f", f"{HOME}/ssh/sshd_config")

    def _listens(self, port: int) -> bool:
        sockets = Path(f"/proc/{self.up.init.pid}/net/tcp").read_text().splitlines()[1:]
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in sockets)  # 0A: listens

    def refuse_ssh(self) -> None:
        """Connections to port 22 are refused; sessions go on."""
        self.daemons["sshd"].kill()
        self.daemons["sshd"].wait()

    def hang_ssh(self) -> None:
        """The kernel accepts connections to port 22, and nobody answers."""
        self.daemons["sshd"].send_signal(signal.SIGSTOP)

    def mend_ssh(self) -> None:
        sshd = self.daemons["sshd"]
        if sshd.poll() is None:
            sshd.send_signal(signal.SIGCONT)
        else:
            self.start_sshd()

    def hide(self, path: str) -> None:
        """Mounts something empty over a folder or a file, for this host alone."""
        empty = f"{HOME}/empty/folder" if os.path.isdir(path) else f"{HOME}/empty/file"
        self.up.run("mount", "--bind", empty, path)
        self._hidden.append(path)

    def unhide(self, path: str) -> None:
        self.up.run("umount", path)
        self._hidden.remove(path)

    def unhide_all(self) -> None:
        for path in list(self._hidden):
            self.unhide(path)

    def cable(self, state: str) -> None:
        """state: "up" or "down", as if its cable were pulled at the switch."""
        self._site.run("ip", "link", "set", "dev", self._port, state)

    def slow(self, rate: str, delay: str) -> bool:
        """Limits both directions. Returns whether the delay holds too: a kernel without netem can limit the rate only."""
        try:
            self._shape("netem", "rate", rate, "delay", delay)
            return True
        except LabError:
            self._shape("tbf", "rate", rate, "burst", "64kb", "latency", "400ms")
            return False

    def _shape(self, *discipline: str) -> None:
        self._site.run("tc", "qdisc", "replace", "dev", self._port, "root", *discipline)
        self._site.run("tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", "root", *discipline)

    def full_speed(self) -> None:
        self._shape("noqueue")


def daemon(where: Namespaces, log: str, *command: str) -> subprocess.Popen:
    """Starts a daemon in the foreground, logging to HOME/log/<log>."""
    words = ["sh", "-c", 'exec "$@" >>"$0" 2>&1', f"{HOME}/log/{log}", *command]
    return where.popen(words, stdin=subprocess.DEVNULL)
