"""`python -m mpirl.placement`: what it prints, what it refuses, and that it needs no MPI."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpirl.config import compose_job, for_each_job
from mpirl.errors import UserError
from mpirl.placement import main
from mpirl.preflight import MARK

ROOT = Path(__file__).parents[1]
LAB = str(ROOT / "hostfiles" / "lab")
CATCH = ["emulator=catch", "model=mlp"]
ANSWER = {"version": [3, 11], "missing": [], "cores": 6, "mpi": "X", "mpi_error": "", "gpus": [], "values": {"mpi": "X"}}


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def hostfile(tmp_path):
    """hostfile(text): the path of a file with it."""

    def write(text):
        (tmp_path / "hosts").write_text(text)
        return str(tmp_path / "hosts")

    return write


@pytest.fixture
def shown(capsys):
    """shown(*arguments): the exit code and what was printed, all in one text."""

    def run(*arguments):
        try:
            code = main([*arguments, *CATCH])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def starts(text):
    """The first words of the table's rows."""
    return [" ".join(line.split()[:3]) for line in text.splitlines() if line[:1].isdigit() and "ranks on" not in line]


def test_the_missions_command_is_shown_without_mpi():
    code = (
        "import sys; from mpirl.placement import main; code = main(sys.argv[1:]); "
        "print('mpi4py' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "-np", "9", "--hostfile", "hostfiles/lab", *CATCH]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert starts(done.stdout) == ["0 gpu0 learner", "1-2 cpu1 worker", "3-4 cpu2 worker", "5-6 cpu3 worker", "7-8 cpu4 worker"]
    assert "32 lanes x" in done.stdout
    assert "start with: mpirun -np 9 --hostfile hostfiles/lab --bind-to none python -m mpirl.main emulator=catch" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_settings_steer_the_table(shown):
    rule = "placement.rules=[{hosts: 'cpu[3-4]', lanes: 9, emulator: {rows: 7}}]"
    code, text = shown("-np", "9", "--hostfile", LAB, "placement.lanes_per_worker=2", rule, "steps=8")
    assert code == 0 and "44 lanes x 8 steps = a batch of 352 steps" in text
    assert [line.split()[3] for line in text.splitlines() if "worker  " in line][:4] == ["2", "2", "9", "9"]
    assert text.count("rows=7") >= 2


def test_both_mpis_hostfiles_give_the_same_table_and_their_own_command(shown):
    code, ours = shown("--hostfile", LAB)
    assert code == 0 and "lab, as Open MPI maps it" in ours
    code, theirs = shown("--hostfile", LAB + ".mpich")
    assert code == 0 and "lab.mpich, as MPICH maps it" in theirs and starts(ours) == starts(theirs)
    assert f"start with: mpirun -np 9 -f {LAB}.mpich python -m mpirl.main" in theirs


def test_slurms_lists_come_from_the_options_or_from_the_job(shown, monkeypatch):
    code, given = shown("--nodelist", "cpu[1-4]", "--tasks-per-node", "2(x4)")
    assert code == 0 and starts(given)[:3] == ["0 cpu1 learner", "1 cpu1 worker", "2-3 cpu2 worker"]
    monkeypatch.setenv("SLURM_JOB_NODELIST", "cpu[1-4]")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "2(x4)")
    assert shown() == (0, given)
    assert "start with: srun -n 8 python" in given


def test_the_parts_of_a_heterogeneous_job_make_one_world(shown, monkeypatch):
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    for part, (nodes, tasks) in enumerate([("gpu0", "1"), ("cpu[1-2]", "3,1")]):
        monkeypatch.setenv(f"SLURM_JOB_NODELIST_HET_GROUP_{part}", nodes)
        monkeypatch.setenv(f"SLURM_TASKS_PER_NODE_HET_GROUP_{part}", tasks)
    assert starts(shown()[1]) == ["0 gpu0 learner", "1-3 cpu1 worker", "4 cpu2 worker"]


def test_without_hosts_all_ranks_are_here(shown):
    code, text = shown("-np", "3", "--oversubscribe")
    assert code == 0 and "3 ranks on 1 host" in text and "?" not in text
    assert "--map-by slot:OVERSUBSCRIBE" in text


@pytest.mark.parametrize(
    "text, arguments, message",
    [
        ("a slots=1\nb slots=1\n", ["-np", "3"], "3 ranks, but .*hosts has 2 slots: write -np 2, raise slots="),
        ("a slots=1\na slots=1\n", [], "hosts:2: .*write one line 'a slots=2'"),
        ("cpu1 slots=1\ngpu0 slots=1\n", [], "move the line of gpu0 to the top"),
        ("localhost slots=1\nno.such.invalid slots=1\n", [], "unknown host no.such.invalid in .*hosts: mend the name"),
        ("a slots=2\n", ["--mpi", "mpich"], "write 'a:2'"),
        ("", [], "names no host"),
        ("a slots=1\n", [], "1 rank fits no plan"),
        ("a slots=2\n", ["totl_steps=1"], "unknown key 'totl_steps' .did you mean 'total_steps'"),
        ("a slots=2\n", ["placement.rules=[{ranks: 1, emulator: {rwos: 7}}]"], "unknown key .*rwos"),
        ("a slots=2\n", ["--nodelist", "cpu1"], "contradict: give one of them"),
        ("a slots=2\n", ["--hostfile", "/no/file"], "the hostfile /no/file cannot be read"),
        ("a slots=2\n", ["-np", "0"], "0: write 1 or more"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(shown, hostfile, text, arguments, message):
    code, printed = shown("--hostfile", hostfile(text), *arguments)
    assert code == 2 and re.search(message, printed), printed
    assert "Traceback" not in printed


def test_a_learner_on_the_cpu_needs_no_gpu_host_first(shown, hostfile):
    code, text = shown("--hostfile", hostfile("cpu1 slots=1\ngpu0 slots=1\n"), "device=cpu")
    assert code == 0 and "memory of that GPU" not in text


def test_hosts_of_another_network_are_only_a_warning(shown, hostfile):
    code, text = shown("--hostfile", hostfile("no.such.host.invalid slots=2\n"))
    assert code == 0 and "warning: this machine knows none of the hosts" in text


@pytest.fixture
def ssh(tmp_path):
    """ssh(name=answer, ...): a script that answers as these hosts; others refuse."""

    def make(**answers):
        lines = ["#!/bin/sh", "cat > /dev/null"]
        for name, changes in answers.items():
            lines.append(f"""case "$*" in *" {name} "*) echo '{MARK}{json.dumps({**ANSWER, **changes})}'; exit 0;; esac""")
        lines += ["echo 'ssh: connect to host x port 22: Connection refused' >&2", "exit 255"]
        (tmp_path / "ssh").write_text("\n".join(lines))
        (tmp_path / "ssh").chmod(0o755)
        return ["--check", "--ssh", str(tmp_path / "ssh")]

    return make


def test_checked_hosts_fill_the_table(shown, hostfile, ssh):
    asked = ssh(cpu1={"gpus": ["GPU 0: X"]}, cpu2={"cores": 2})
    code, text = shown("--hostfile", hostfile("cpu1 slots=1\ncpu2 slots=3\n"), "placement.learner_threads=5", *asked)
    assert code == 0 and "host check: 2 of 2 ready" in text
    cells = [line.split()[:7] for line in text.splitlines() if line[:1].isdigit()]
    assert ["0", "cpu1", "learner", "-", "6", "5", "cuda"] in cells
    assert ["1-3", "cpu2", "worker", "4", "2", "1", "none"] in cells
    assert "warning: cpu2 has 2 cores for 3 ranks: Open MPI refuses that without --bind-to none" in text


def test_slots_that_the_hostfile_leaves_out_are_the_cores_that_were_counted(shown, hostfile, ssh):
    code, text = shown("--hostfile", hostfile("cpu1\ncpu2 slots=1\n"), *ssh(cpu1={}, cpu2={}))
    assert code == 0 and "7 ranks on 2 hosts" in text


def test_a_host_that_fails_the_check_is_named_and_the_exit_code_is_1(shown, hostfile, ssh):
    path = hostfile("cpu1 slots=1\ncpu2 slots=1\ncpu3 slots=1\n")
    code, text = shown("--hostfile", path, *ssh(cpu1={}, cpu2={"missing": ["mpirl"]}))
    assert code == 1 and "host check: 1 of 3 ready" in text
    assert f"cpu3: cannot be reached by ssh (Connection refused): start sshd there, or take its line out of {path}" in text
    assert "cpu2: " in text and "has no module mpirl: pip install mpirl there" in text


def test_a_gpu_that_the_check_finds_on_another_host_has_to_be_first(shown, hostfile, ssh):
    asked = ssh(a={}, b={"gpus": ["GPU 0: X"]})
    code, text = shown("--hostfile", hostfile("a slots=1\nb slots=1\n"), *asked)
    assert code == 2 and "b has a GPU, but rank 0, the learner, would run on a: move the line of b to the top" in text


@pytest.mark.parametrize(
    "overrides",
    [
        ["emulator=catch", "steps=7"],
        ["experiment=pong", "placement=sticky_first"],
        ["emulator=ctach"],
        ["emulator=catch", "emulator.rwos=3"],
        ["emulator=gymnasium"],
        ["emulator=catch", "trial=${nothing}"],
        ["resume=true", "run_dir=no/run"],
    ],
)
def test_a_job_is_composed_as_a_run_composes_it(overrides, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(sys, "argv", ["mpirl", *overrides])
    jobs = []
    try:
        for_each_job(lambda job: jobs.append(job) or 0)
        wanted = jobs[0] if jobs else capsys.readouterr().err.removeprefix("mpirl: ").strip()
    except UserError as error:
        wanted = str(error)
    try:
        found = compose_job(overrides)
    except UserError as error:
        found = str(error)
    assert found == wanted


def test_a_users_own_config_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "emulator").mkdir()
    (tmp_path / "emulator" / "mine.yaml").write_text("_target_: mpirl.emulators.catch.Catch\nrows: 6\n")
    job = compose_job(["emulator=mine"], str(tmp_path))
    assert job.config["emulator"]["rows"] == 6 and job.config["name"] == "mine"
