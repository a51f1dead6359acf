"""What a rank says of itself at the start, so that ranks that differ are noticed before they train together.

| item | value | what of it changes results, and is an error; else a warning |
|---|---|---|
| `mpi` | the MPI library, as the transport names it | all of it: different libraries do not even interoperate |
| `code` | hash of mpirl's .py files | all of it |
| `config` | hash of the config | all of it |
| a user's module, by its top-level name | hash of its .py files | all of it |
| `torch` `numpy` `ale-py` | version | the version; not the build after the + (a GPU host has another than a CPU host) |
| `python` `gymnasium` | version | major.minor |
| `mpirl` | version | nothing: `code` says more |
| `mpi4py` | version | nothing: what travels is MPI's |
| `h5py` | version | nothing: rank 0 alone writes archives; none at all is fine elsewhere |
| `machine` `cpu` `glibc` | architecture, vector instructions, version | nothing but the last bits of floats |

A package that rank 0 has and another rank lacks is an error where its version would be. What rank 0 itself lacks, it does not
need: then the first rank that has it is what the others are compared with.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import mpirl
from mpirl.build import TARGET, closest
from mpirl.errors import UserError

PACKAGES = ("torch", "numpy", "mpi4py", "h5py", "gymnasium", "ale-py")
INSTRUCTIONS = ("fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "bf16")  # names of /proc/cpuinfo


def whole(value: str) -> str:
    return value


def nothing(value: str) -> str:
    return ""


def release(version: str) -> str:
    """2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]


def series(version: str) -> str:
    """3.11 of 3.11.7."""
    return ".".join(version.split(".")[:2])


WHAT_MATTERS: Mapping[str, Callable[[str], str]] = {
    **dict.fromkeys(("mpi", "code", "config"), whole),
    **dict.fromkeys(("torch", "numpy", "ale-py"), release),
    **dict.fromkeys(("python", "gymnasium"), series),
    **dict.fromkeys(("mpirl", "mpi4py", "h5py", "machine", "cpu", "glibc"), nothing),
}
"""Item -> the part of its value that changes results. Items that are not here are users' modules, and matter as a whole."""
ONLY_RANK_0 = ("h5py",)  # items that other ranks may lack


@dataclass(frozen=True)
class Identity:
    """values: item -> value, None where there is none. Items are those of the module's table, and users' modules."""

    values: dict[str, str | None]

    @classmethod
    def here(cls, library: str, config_hash: str, modules: Sequence[str] = ()) -> Identity:
        """This process's. library: the MPI library's name and version, empty without MPI. modules: see `user_modules`."""
        values = {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}
        values |= {"mpi": library or None, "mpirl": mpirl.__version__, "code": code_hash(), "config": config_hash}
        values |= {"machine": platform.machine(), "cpu": vector_instructions(), "glibc": glibc()}
        return cls(values | {name: module_hash(name) for name in modules if name not in values})

    def as_dict(self) -> dict[str, str | None]:
        """For logs and status.json."""
        return dict(self.values)


@dataclass(frozen=True)
class Difference:
    """An item whose value on `ranks` (of `hosts`, in the same order) is not the `expected` one of rank `reference`."""

    item: str
    expected: str
    reference: int
    reference_host: str
    value: str | None
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]

    @property
    def changes_results(self) -> bool:
        matters = WHAT_MATTERS.get(self.item, whole)
        return matters(self.expected) != matters(self.value or "none")

    def __str__(self) -> str:
        expected = f"{self.expected} on rank {self.reference} of {self.reference_host}"
        return f"{self.item}: {expected}, {self.value or 'none'} on {places(self.ranks, self.hosts)}"

    @property
    def mend(self) -> str:
        """What makes the ranks alike."""
        hosts = ", ".join(dict.fromkeys(self.hosts))
        if self.item in ("mpi", "python", *PACKAGES):
            wanted = {"mpi": self.expected, "python": f"Python {series(self.expected)}"}
            return f"install {wanted.get(self.item, f'{self.item}=={release(self.expected)}')} on {hosts}"
        if self.item in ("code", "config"):
            return f"bring rank {self.reference}'s {'mpirl' if self.item == 'code' else 'config'} to {hosts}"
        whose = f"rank {self.reference}'s module {self.item}"
        return f"bring {whose} to {hosts}, and its folder into PYTHONPATH (mpirun -x PYTHONPATH)"


def check_alike(identities: Sequence[Identity], hosts: Sequence[str], allowed: Sequence[str] | str | None = ()) -> list[str]:
    """Warnings, one for each difference of the ranks that does no harm or is `allowed` (items, or "all").

    Raises UserError naming all others, or unknown items in `allowed`: on all ranks alike, as it reads its arguments alone.
    """
    allowed = [allowed] if isinstance(allowed, str) else allowed or []
    check_allowed(allowed, identities)
    found = differences(identities, hosts)
    errors = [difference for difference in found if difference.changes_results and not {difference.item, "all"} & set(allowed)]
    if errors:
        lines = "".join(f"\n  {difference}\n    {difference.mend}" for difference in errors)
        items = ",".join(dict.fromkeys(difference.item for difference in errors))
        raise UserError(
            f"ranks differ in what changes results:{lines}\n"
            f"make them the same, or write allow_differences=[{items}] to run all the same"
        )
    return [f"ranks differ in {difference}{' (allowed)' if difference.changes_results else ''}" for difference in found]


def check_allowed(allowed: Sequence[str], identities: Sequence[Identity]) -> None:
    """Raise UserError for names that are no items."""
    known = ["all", *dict.fromkeys([*WHAT_MATTERS, *(item for identity in identities for item in identity.values)])]
    for name in allowed:
        if name not in known:
            raise UserError(f"allow_differences: unknown item {name!r}{closest(str(name), known)}; known: {', '.join(known)}")


def differences(identities: Sequence[Identity], hosts: Sequence[str]) -> list[Difference]:
    """Where ranks differ from rank 0 (see the module's table), by item; one for every value other than the expected one."""
    items = dict.fromkeys(item for identity in identities for item in identity.values)
    return [difference for item in items for difference in differences_in(item, identities, hosts)]


def differences_in(item: str, identities: Sequence[Identity], hosts: Sequence[str]) -> list[Difference]:
    values = [identity.values.get(item) for identity in identities]
    reference = next((rank for rank, value in enumerate(values) if value is not None), 0)
    expected = values[reference]
    if expected is None:
        return []
    ranks_of: dict[str | None, list[int]] = {}
    for rank, value in enumerate(values):
        may_lack = rank < reference or item in ONLY_RANK_0
        if value != expected and not (value is None and may_lack):
            ranks_of.setdefault(value, []).append(rank)
    return [
        Difference(item, expected, reference, hosts[reference], value, tuple(ranks), tuple(hosts[rank] for rank in ranks))
        for value, ranks in ranks_of.items()
    ]


def places(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """'ranks 5, 6 on cpu3, rank 7 on cpu4'. hosts: of each of the ranks."""
    on: dict[str, list[str]] = {}
    for rank, host in zip(ranks, hosts):
        on.setdefault(host, []).append(str(rank))
    return ", ".join(f"rank{'s' if len(group) > 1 else ''} {', '.join(group)} on {host}" for host, group in on.items())


def config_hash(config: Mapping[str, Any]) -> str:
    """The hash of a plain config; the order of keys does not matter."""
    with_text_keys = json.loads(json.dumps(config, default=str))  # numbers and words cannot be sorted together
    return digest([json.dumps(with_text_keys, sort_keys=True).encode()])


def user_modules(config: Any) -> list[str]:
    """Top-level modules outside mpirl that the config names: in any `_target_`, and before the colon of `id: package:id`."""
    if isinstance(config, (list, tuple)):
        return sorted({name for value in config for name in user_modules(value)})
    if not isinstance(config, Mapping):
        return []
    paths = [config.get(TARGET), str(config.get("id", "")).rpartition(":")[0]]
    found = {str(path).partition(".")[0] for path in paths if path}
    return sorted((found - {"", "mpirl"}).union(*(user_modules(value) for value in config.values())))


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=None)
def code_hash() -> str:
    """The hash of mpirl itself."""
    return files_hash([Path(__file__).resolve().parent])


def module_hash(name: str) -> str | None:
    """The hash of a top-level module's file, or of all .py files of a package; None if there is none. Imports nothing."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: it is loaded, and does not say from where
        return None
    if spec and spec.submodule_search_locations is not None:
        return files_hash([Path(folder) for folder in spec.submodule_search_locations])
    return digest([Path(spec.origin).read_bytes()]) if spec and spec.has_location and spec.origin else None


def files_hash(folders: Sequence[Path]) -> str:
    """The hash of the names, relative to their folder, and contents of all .py files below the folders."""
    found = [(path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py")]
    files = [(name, path) for name, path in sorted(found) if path.is_file()]  # not an editor's dangling link
    return digest([part for name, path in files for part in (name.encode(), path.read_bytes())])


def digest(parts: Sequence[bytes]) -> str:
    """16 hexadecimal digits of the parts' SHA-256; where one part ends and the next begins counts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)}:".encode() + part)
    return total.hexdigest()[:16]


def vector_instructions(path: str = "/proc/cpuinfo") -> str | None:
    """Those of INSTRUCTIONS that this CPU has, as /proc/cpuinfo tells ("flags" on x86, "Features" on Arm)."""
    try:
        lines = Path(path).read_text().lower().splitlines()
    except OSError:
        return None
    here = next((line for line in lines if line.startswith(("flags", "features"))), "").partition(":")[2].split()
    return " ".join(name for name in INSTRUCTIONS if name in here) or None


def glibc() -> str | None:
    """Its version; None with another C library."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ") or None
    except (ValueError, OSError):
        return None
