"""Slurm on the lab's hosts: munged and slurmctld beside the hosts, one slurmd on each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from hosts import HOME, Host, daemon
from namespaces import LabError, Namespaces, wait_until

CONTROLLER = "slurmctl"

# Short times, so that tests need not wait for them. cred_expire is also how long a requeued job waits.
SLURM_CONF = """
ClusterName=lab
SlurmctldHost={controller}({address})
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={home}/munge/socket,cred_expire=5
StateSaveLocation={home}/slurm/state
SlurmdSpoolDir={home}/slurm/%n
SlurmctldPidFile={home}/slurm/slurmctld.pid
SlurmdPidFile={home}/slurm/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,bf_hetjob_immediate
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=30
SlurmctldTimeout=30
InactiveLimit=0
MessageTimeout=20
MpiDefault=none
MailProg=/bin/true
NodeName=DEFAULT CPUs={cpus} RealMemory=1000 State=UNKNOWN
{nodes}
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP OverSubscribe=NO
"""
CGROUP_CONF = """
CgroupPlugin=cgroup/v1
CgroupAutomount=no
"""
MPI_CONF = """
PMIxCliTmpDirBase=/run/tmp
PMIxTimeout=60
"""
GRES_CONF = "AutoDetect=off\n"


GPU = " Gres=gpu:1 Weight=9"  # jobs that want no GPU take other nodes first, as clusters have it


class Slurm:
    """The cluster. Commands find it by its files, which stand in for /etc/slurm on the lab's hosts."""

    def __init__(self, site: Namespaces, folder: Path, hosts: Iterable[Host], address: str, cpus: int) -> None:
        """folder: HOME as seen from outside. address: where slurmctld listens. cpus: per host, for Slurm to count."""
        self._site, self._hosts = site, list(hosts)
        gpus = [host for host in self._hosts if host.name.startswith("gpu")]  # jobs can ask for one; there is no device
        nodes = [f"NodeName={host.name} NodeAddr={host.address}{GPU if host in gpus else ''}" for host in self._hosts]
        config = SLURM_CONF.format(controller=CONTROLLER, address=address, home=HOME, cpus=cpus, nodes="\n".join(nodes))
        gres = GRES_CONF + "".join(f"NodeName={host.name} Name=gpu File=/dev/null\n" for host in gpus)
        self._write(folder, {"slurm.conf": config, "cgroup.conf": CGROUP_CONF, "mpi.conf": MPI_CONF, "gres.conf": gres})
        site.run("mount", "--bind", f"{HOME}/slurm/etc", "/etc/slurm")

    def _write(self, folder: Path, files: Mapping[str, str]) -> None:
        for name in ("etc", "state", *(host.name for host in self._hosts)):
            (folder / "slurm" / name).mkdir(parents=True)
        for name, text in files.items():
            (folder / "slurm/etc" / name).write_text(text)
        (folder / "munge").mkdir()
        (folder / "munge/key").write_bytes(os.urandom(128))
        (folder / "munge/key").chmod(0o400)

    def start(self) -> None:
        """Starts the cluster and returns when all hosts are idle."""
        munge = f"{HOME}/munge"
        self._munged = daemon(
            self._site, "munged", "munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
            f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={HOME}/log/munged.log",
        )  # fmt: skip
        wait_until(lambda: self._site_has(f"{munge}/socket"), "munged")
        self._controller = daemon(self._site, "slurmctld", "slurmctld", "-D", "-i")
        for host in self._hosts:
            self.start_on(host)
        self.wait_until_idle()

    def _site_has(self, path: str) -> bool:
        return Path(f"/proc/{self._site.init.pid}/root{path}").exists()

    def start_on(self, host: Host) -> None:
        """Starts a host's slurmd."""
        host.daemon(6818, "slurmd", "slurmd", "-D")

    def cancel_all(self) -> None:
        """Ends every job, and returns when the hosts are free again."""
        self._site.run("scancel", "--user=root", "--signal=KILL", "--full")
        self._site.run("scancel", "--user=root")
        self.wait_until_idle()

    def wait_until_idle(self, seconds: float = 30.0) -> None:
        """Raises LabError with the words of the controller's log when the hosts are not all idle in time."""
        try:
            wait_until(lambda: self._states() == {"idle"}, "all hosts to be idle in Slurm", seconds)
        except LabError as error:
            log = self._site.run("tail", "-n", "20", f"{HOME}/log/slurmctld")
            raise LabError(f"{error}: {self._states()}; slurmctld says:\n{log}") from None

    def _states(self) -> set[str]:
        try:
            return set(self._site.run("sinfo", "--noheader", "--Node", "--format=%T").split())
        except LabError:  # slurmctld does not listen yet
            return set()
