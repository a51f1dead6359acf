"""Hostfiles of Open MPI and MPICH: which hosts there are, and which ranks go where. Pure.

What each launcher does was tried out with Open MPI 5.0.11 and MPICH 5.0.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from mpirl.errors import UserError

OPENMPI, MPICH, SLURM = "openmpi", "mpich", "slurm"
TITLES = {OPENMPI: "Open MPI", MPICH: "MPICH", SLURM: "Slurm"}
SLOTS = ("slots", "cpu", "count")
MAX_SLOTS = tuple(f"{a}{dash}{b}" for name in SLOTS for a, b in ((name, "max"), ("max", name)) for dash in "-_")
OPENMPI_KEYS = (*SLOTS, *MAX_SLOTS, "username", "user-name", "user_name", "port")
MPICH_KEYS = ("binding", "user")
NAME = re.compile(r"(?:[\w.-]+@)?\w[\w.-]*")
FORMS = "write 'cpu1 slots=2' (Open MPI) or 'cpu1:2' (MPICH)"


@dataclass(frozen=True)
class Host:
    """A host to start ranks on. slots: None is Open MPI's for as many as it has cores. line: where it stands, 0 if nowhere."""

    name: str
    slots: int | None
    max_slots: int | None = None
    user: str | None = None
    line: int = 0

    @property
    def address(self) -> str:
        """As ssh takes it."""
        return f"{self.user}@{self.name}" if self.user else self.name


@dataclass(frozen=True)
class Hosts:
    """The hosts in the launcher's order. where: what names them, for messages."""

    where: str
    dialect: str
    hosts: tuple[Host, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every host once."""
        return list(dict.fromkeys(host.name for host in self.hosts))


@dataclass(frozen=True)
class Line:
    """A line of a hostfile before it is known whose it is. slots: after a colon. settings: key=value after a space."""

    where: str
    number: int
    text: str
    name: str
    slots: str | None
    settings: Mapping[str, str]
    has_comment: bool

    @property
    def dialect(self) -> str | None:
        """Whose form it is, None for a bare name, which both have."""
        if self.slots is not None or set(self.settings) & set(MPICH_KEYS):
            return MPICH
        return OPENMPI if self.settings else None

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.where}:{self.number}: {self.text!r}: {what}")


def parse_hostfile(text: str, where: str, dialect: str | None = None) -> Hosts:
    """The hosts of a hostfile. dialect: OPENMPI or MPICH, None to tell by the lines. Raises UserError for mistakes."""
    lines = [read_line(where, number, line) for number, line in enumerate(text.split("\n"), 1) if is_line(line)]
    if not lines:
        raise UserError(f"{where} names no host: mpirun would start all ranks here; write lines such as 'gpu0 slots=1'")
    found, notes = the_dialect(lines, dialect), []
    hosts = join_repeated([openmpi_host(line) if found == OPENMPI else mpich_host(line) for line in lines], lines, found)
    if dialect is None and not any(line.dialect for line in lines):
        notes.append(f"{where} does not tell whose it is: it is read as Open MPI's; say --mpi mpich if it is MPICH's")
    return Hosts(where, found, tuple(hosts), tuple(notes))


def is_line(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith(("#", "//"))


def read_line(where: str, number: int, raw: str) -> Line:
    """Split a line into its name and settings."""
    text = re.split("#|//", raw)[0].strip()
    name, *rest = re.sub(r"\s*=\s*", "=", text).split()
    plain, colon, slots = (name, "", "") if is_address(name) else name.partition(":")
    settings = dict(item.partition("=")[::2] for item in rest)
    line = Line(where, number, text, plain, slots if colon else None, settings, has_comment=text != raw.strip())
    if raw.endswith("\r"):
        raise line.wrong("ends as lines do in Windows, which mpirun does not read: convert the file with sed -i 's/\\r$//'")
    if not (NAME.fullmatch(plain) or is_address(plain)) or not all("=" in item for item in rest):
        raise line.wrong(f"not a line of a hostfile: {FORMS}")
    if unknown := [key for key in settings if key not in OPENMPI_KEYS + MPICH_KEYS]:
        raise line.wrong(f"hostfiles have no {unknown[0]}=: {FORMS}")
    return line


def is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def the_dialect(lines: Sequence[Line], wanted: str | None) -> str:
    """Whose hostfile it is; each MPI refuses or misreads the other's form."""
    firsts = {dialect: line for line in reversed(lines) if (dialect := line.dialect)}
    if wanted is None and len(firsts) == 2:
        ours, theirs = firsts[OPENMPI], firsts[MPICH]
        raise theirs.wrong(
            f"MPICH's form, but line {ours.number}, {ours.text!r}, is Open MPI's: write all lines for one of them, "
            f"'{theirs.name} slots=2' for Open MPI or '{ours.name}:2' for MPICH"
        )
    for dialect, line in firsts.items():
        if wanted not in (None, dialect):
            raise line.wrong(f"{TITLES[dialect]}'s form, which {TITLES[wanted]} does not read: write '{in_form(line, wanted)}'")
    return wanted or next(iter(firsts), OPENMPI)


def in_form(line: Line, dialect: str, slots: int | None = None) -> str:
    """The line in the form of a dialect."""
    said = slots or line.slots or next((line.settings[key] for key in SLOTS if key in line.settings), "1")
    return f"{line.name} slots={said}" if dialect == OPENMPI else f"{line.name}:{said}"


def openmpi_host(line: Line) -> Host:
    user, _, name = line.name.rpartition("@")
    given = line.settings
    slots = [whole(line, key, given[key]) for key in SLOTS if key in given]
    most = [whole(line, key, given[key]) for key in MAX_SLOTS if key in given]
    if slots and most and most[0] < slots[0]:
        raise line.wrong(f"max_slots={most[0]} is less than slots={slots[0]}: write max_slots={slots[0]} or more")
    user = next((value for key, value in given.items() if key.startswith("user")), user)
    return Host(name, (slots or most or [None])[0], (most or [None])[0], user or None, line.number)


def mpich_host(line: Line) -> Host:
    if line.has_comment:
        raise line.wrong("MPICH reads no comment behind a host: put it on a line of its own")
    user, _, name = line.name.rpartition("@")
    slots = 1 if line.slots is None else whole(line, "", line.slots)
    return Host(name, slots, None, line.settings.get("user", user) or None, line.number)


def whole(line: Line, key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        form = f"{key}={value}" if key else f":{value}"
        raise line.wrong(f"{form} is no number of ranks: write 1 or more, or take the line out")
    return int(value)


def join_repeated(hosts: Sequence[Host], lines: Sequence[Line], dialect: str) -> list[Host]:
    """A bare line that is repeated is one slot more: of the host for Open MPI, at that place for MPICH."""
    joined: list[Host] = []
    firsts: dict[str, Line] = {}
    for host, line in zip(hosts, lines):
        first = firsts.setdefault(short(host.name) if dialect == OPENMPI else host.name, line)
        if first is not line and (line.dialect or first.dialect):
            earlier = next(other for other in joined if other.line == first.number)
            mend = in_form(line, dialect, (earlier.slots or 1) + (host.slots or 1))
            raise line.wrong(f"{host.name} stands on line {first.number} already: write one line '{mend}'")
        if first is line or dialect == MPICH:
            joined.append(host)
        else:
            place = next(place for place, other in enumerate(joined) if other.line == first.number)
            joined[place] = replace(joined[place], slots=(joined[place].slots or 1) + 1)
    return joined


def short(name: str) -> str:
    """The name before the first dot, by which Open MPI knows a host; addresses stay whole."""
    return name if is_address(name) else name.partition(".")[0]


def place_ranks(hosts: Hosts, num_ranks: int, oversubscribe: bool = False, cores: Mapping[str, int] | None = None) -> list[str]:
    """The host of every rank, as the launcher maps by default. cores: of the hosts that are known."""
    slots = [slots_of(host, cores or {}) for host in hosts.hosts]
    total, names = sum(slots), [host.name for host in hosts.hosts]
    if num_ranks > total and not oversubscribe:
        raise UserError(too_many(hosts, num_ranks, total, cores or {}))
    if hosts.dialect == MPICH:
        return [name for _ in range(-(-num_ranks // total)) for name, n in zip(names, slots) for _ in range(n)][:num_ranks]
    if hosts.dialect == SLURM:
        counts = in_blocks(slots, num_ranks)
    else:
        each, over = divmod(max(0, num_ranks - total), len(slots))
        counts = [n + each + (index < over) for index, n in enumerate(slots)]
    for host, count in zip(hosts.hosts, counts):
        if num_ranks > total and host.max_slots and count > host.max_slots:
            raise UserError(f"{num_ranks} ranks put {count} on {host.name}, its max_slots={host.max_slots}: mend {hosts.where}")
    return [name for name, count in zip(names, counts) for _ in range(count)][:num_ranks]


def slots_of(host: Host, cores: Mapping[str, int]) -> int:
    return host.slots if host.slots is not None else cores.get(host.name, 1)


def in_blocks(slots: Sequence[int], num_ranks: int) -> list[int]:
    """Slurm's block distribution: one for every host while there are any, the rest to the first hosts with room."""
    counts = [min(1, max(0, num_ranks - index)) for index in range(len(slots))]
    for index, room in enumerate(slots):
        counts[index] += max(0, min(room - counts[index], num_ranks - sum(counts)))
    if over := num_ranks - sum(counts):
        counts = [n + over // len(counts) + (index < over % len(counts)) for index, n in enumerate(counts)]
    return counts


def too_many(hosts: Hosts, num_ranks: int, total: int, cores: Mapping[str, int]) -> str:
    last, first = hosts.hosts[-1], hosts.hosts[0]
    more = slots_of(last, cores) + num_ranks - total
    start = f"{num_ranks} ranks, but {hosts.where} has {total} slots: write -np {total}, "
    if hosts.dialect == SLURM:
        return f"{start}ask for more (--ntasks={num_ranks}), or add --oversubscribe (srun: --overcommit)"
    if hosts.dialect == MPICH:
        again = f"to have MPICH start again at the top, with rank {total} on {first.name}"
        return f"{start}raise the numbers (as '{last.name}:{more}'), or add --oversubscribe {again}"
    unknown = [host.name for host in hosts.hosts if host.slots is None and host.name not in cores]
    counted = f"; counted as 1, for want of slots= or --check: {', '.join(unknown)}" if unknown else ""
    how = "raise slots=" if last.line else "give a hostfile"
    oversubscribe = "add --oversubscribe (mpirun: --map-by slot:OVERSUBSCRIBE)"
    return f"{start}{how} (as '{last.name} slots={more}'), or {oversubscribe}{counted}"
