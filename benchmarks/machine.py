"""Words about the machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version


def describe_machine() -> dict[str, object]:
    """Processor, cores, and the versions that matter."""
    with open("/proc/cpuinfo") as file:
        lines = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    features = [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if name in facts.get("flags", "").split()]
    versions = {name: version(name) for name in ("torch", "numpy", "mpi4py", "ale-py") if _installed(name)}
    return {
        "processor": facts.get("model name", platform.processor()),
        "features": features,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
    }


def _installed(name: str) -> bool:
    try:
        version(name)
        return True
    except Exception:
        return False
