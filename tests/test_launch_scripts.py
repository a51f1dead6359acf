"""The Slurm scripts, with srun, squeue and scontrol played by stubs: what they start, and when they requeue."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sbatch"))
STUBS = {
    # Notes its hostfile and its arguments, one per line, does what the test's `step` says, and ends with CODE.
    "srun": 'cat $SLURM_HOSTFILE /dev/null > hosts.txt; printf "%s\\n" "$@" >> srun.txt; . ./step; exit ${CODE:-0}',
    "squeue": "echo ${JOB_STATE:-RUNNING}",
    # Expands lists without brackets; a requeue ends the script, as Slurm does.
    "scontrol": '[ "$1" = show ] && echo "$3" | tr , "\\n" && exit; echo "$@" >> scontrol.txt; kill -TERM $PPID',
}
STOPPED = {"state": "stopped", "reason": "signal SIGUSR1", "steps": 90, "total_steps": 200}
STOPPED |= {"iteration": 9, "resumed_at_iteration": 4}


class Job:
    """A folder to submit in, and what a job in it did."""

    def __init__(self, folder: Path):
        self.folder, self.run_dir = folder, folder / "runs/mpirl-17"
        (folder / "bin").mkdir()
        (folder / "step").write_text("")
        for name, body in STUBS.items():
            (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / "bin" / name).chmod(0o755)
        (folder / "bin/python").symlink_to(sys.executable)
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NAME": "mpirl",
            "SLURM_SUBMIT_DIR": str(ROOT),
        }

    def leave(self, run_dir="runs/mpirl-17", completed=False, age=0.0, **status):
        """Let the step leave a status.json that began `age` seconds ago, and perhaps COMPLETED, in the run directory."""
        text = json.dumps({**status, "started": time.time() + 60 - age})
        lines = [f"mkdir -p {run_dir}", f"cat > {run_dir}/status.json <<'END'\n{text}\nEND"]
        lines += [f"echo 'iteration 20, 200 steps' > {run_dir}/COMPLETED"] * completed
        (self.folder / "step").write_text("\n".join(lines) + "\n")
        return self

    def start(self, *arguments, script="slurm.sbatch", **environment):
        command = ["bash", str(LAUNCH / script), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": self.folder}
        return subprocess.Popen(command, env={**self.environment, **environment}, **pipes)

    def run(self, *arguments, **options):
        process = self.start(*arguments, **options)
        self.printed = process.communicate(timeout=30)[0]
        self.code = process.returncode
        return self

    def told(self, name):
        path = self.folder / f"{name}.txt"
        return path.read_text().split("\n")[:-1] if path.exists() else []


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_that_can_be_started(name):
    assert subprocess.run(["bash", "-n", str(LAUNCH / name)]).returncode == 0
    assert (LAUNCH / name).stat().st_mode & 0o111


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_signalled_in_time_and_may_be_requeued(name):
    for part in (LAUNCH / name).read_text().split("#SBATCH hetjob"):
        assert "#SBATCH --signal=USR1@" in part and "#SBATCH --requeue" in part


def test_the_step_resumes_by_itself_with_the_users_overrides_last(job):
    job.run("emulator=catch", "name=a b")
    assert job.told("srun") == [
        *("--mpi=pmix", "--kill-on-bad-exit=1", "python", "-m", "mpirl.main"),
        *("resume=auto", "run_dir=runs/mpirl-17", "emulator=catch", "name=a b"),
    ]


def test_the_mpi_and_the_cores_per_task_are_handed_on(job):
    job.run(MPIRL_MPI="pmi2", SLURM_CPUS_PER_TASK="4")
    assert job.told("srun")[:3] == ["--mpi=pmi2", "--kill-on-bad-exit=1", "--cpus-per-task=4"]


def test_a_heterogeneous_job_is_one_step_with_its_first_component_first(job):
    cores = {"SLURM_CPUS_PER_TASK_HET_GROUP_0": "8", "SLURM_CPUS_PER_TASK_HET_GROUP_1": "2"}
    cores |= {"SLURM_JOB_NODELIST_HET_GROUP_0": "a", "SLURM_JOB_NODELIST_HET_GROUP_1": "b"}
    words = " ".join(job.run("seed=3", script="slurm-het.sbatch", SLURM_HET_SIZE="2", **cores).told("srun"))
    first, second = words.split(" : ")
    assert first.startswith("--het-group=0 --mpi=pmix") and "--cpus-per-task=8" in first
    assert second.startswith("--het-group=1 --mpi=pmix") and "--cpus-per-task=2" in second
    overrides = "resume=auto run_dir=runs/mpirl-17 placement.learner=b seed=3"
    assert first.split(" python ")[1] == second.split(" python ")[1] == f"-m mpirl.main {overrides}"


def test_the_learners_node_can_be_chosen(job):
    assert job.run(MPIRL_LEARNER="gpu0").told("srun")[-1] == "placement.learner=gpu0"


@pytest.mark.parametrize(
    ("nodes", "mpi", "warned"),
    [(("gpu0", "cpu1,cpu2"), "pmix", True), (("gpu0", "cpu1,cpu2"), "pmi2", False), (("a9", "a10"), "pmix", False)],
)
def test_nodes_in_an_order_that_slurms_pmix_mixes_up_are_warned_of(job, nodes, mpi, warned):
    order = {f"SLURM_JOB_NODELIST_HET_GROUP_{group}": names for group, names in enumerate(nodes)}
    job.run(SLURM_HET_SIZE="2", MPIRL_MPI=mpi, **order)
    assert ("does not come first by name (cpu1 does)" in job.printed) == warned and job.told("srun")


@pytest.mark.parametrize(
    ("arguments", "environment", "run_dir"),
    [
        ([], {}, "runs/mpirl-17"),
        ([], {"SLURM_JOB_NAME": "night"}, "runs/night-17"),
        ([], {"MPIRL_RUN_DIR": "elsewhere"}, "elsewhere"),
        (["run_dir=mine", "seed=2"], {"MPIRL_RUN_DIR": "elsewhere"}, "mine"),
        ([], {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"}, "runs/mpirl-15/2"),
    ],
)
def test_the_run_directory_stays_the_same_over_requeues(job, arguments, environment, run_dir):
    job.leave(run_dir, completed=True, state="finished").run(*arguments, **environment)
    assert f"run_dir={run_dir}" in job.told("srun") and job.code == 0 and f"directory {run_dir}" in job.printed


def test_a_run_that_was_stopped_by_the_time_limit_is_requeued(job):
    job.leave(**STOPPED).run()
    assert job.told("scontrol") == ["requeue 17"] and "requeue signal SIGUSR1 at 90 of 200 steps" in job.printed


def test_a_task_of_an_array_is_requeued_alone(job):
    array = {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"}
    assert job.leave("runs/mpirl-15/2", **STOPPED).run(**array).told("scontrol") == ["requeue 15_2"]


def test_a_preempted_run_that_saved_is_requeued_while_slurm_still_counts_it_as_running(job):
    assert job.leave(**{**STOPPED, "reason": "signal SIGTERM"}).run().told("scontrol") == ["requeue 17"]


def test_a_cancelled_job_is_not_requeued(job):
    job.leave(**{**STOPPED, "reason": "signal SIGTERM"}).run(JOB_STATE="COMPLETING")
    assert not job.told("scontrol") and "COMPLETING: not requeued" in job.printed


ENDINGS = {
    "completed": ({"completed": True, "state": "finished"}, {}, 0),
    "completed, though srun says otherwise": ({"completed": True, "state": "finished"}, {"CODE": "9"}, 0),
    "failed": ({"state": "failed", "reason": "ValueError: x", "resumed_at_iteration": 0}, {"CODE": "1"}, 1),
    "failed, though srun says otherwise": ({"state": "failed", "reason": "x", "resumed_at_iteration": 0}, {}, 1),
    "killed": ({"state": "running", "resumed_at_iteration": 0}, {"CODE": "137"}, 137),
    "did not begin again": ({**STOPPED, "age": 9000.0}, {"CODE": "2"}, 2),
    "stopped by the user": ({**STOPPED, "reason": "signal SIGINT"}, {}, 0),
    "stopped by max_time": ({**STOPPED, "reason": "max_time of 5 s reached"}, {}, 0),
    "no iteration": ({**STOPPED, "iteration": 4}, {}, 1),
    "no iteration ever": ({**STOPPED, "iteration": None, "resumed_at_iteration": 0}, {}, 1),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_other_endings_are_not_requeued(job, name):
    left, environment, code = ENDINGS[name]
    job.leave(**{key: value for key, value in left.items() if value is not None}).run(**environment)
    assert not job.told("scontrol") and job.code == code, job.printed


def test_a_run_that_never_began_is_a_failure_even_if_srun_says_otherwise(job):
    assert job.run().code == 1 and "the run never began" in job.printed and not job.told("scontrol")


def test_an_old_marker_does_not_hide_a_failure(job):
    job.run_dir.mkdir(parents=True)
    (job.run_dir / "COMPLETED").write_text("iteration 5, 50 steps")
    os.utime(job.run_dir / "COMPLETED", (1e9, 1e9))
    assert job.leave(state="failed", reason="x", resumed_at_iteration=5).run(CODE="1").code == 1
    assert job.run(CODE="0").code == 0  # resume=auto found it done


def test_when_slurm_refuses_to_requeue_the_command_to_go_on_is_told(job):
    job.leave(**STOPPED)
    (job.folder / "bin/scontrol").write_text("#!/bin/sh\nexit 1\n")
    job.run("seed=3")
    assert job.code == 1 and "MPIRL_RUN_DIR=runs/mpirl-17 sbatch launch/slurm.sbatch seed=3" in job.printed


def test_a_term_does_not_end_the_script_before_the_run_has_saved(job):
    step = job.leave(**{**STOPPED, "reason": "signal SIGTERM"}).folder / "step"
    step.write_text("touch began; sleep 1\n" + step.read_text())
    process = job.start()
    while not (job.folder / "began").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=30)[0]
    assert "TERM: waiting" in printed and "at 90 of 200 steps" in printed


def test_an_environment_without_mpirl_is_told(job):
    (job.folder / "bin/python").unlink()
    (job.folder / "bin/python").write_text("#!/bin/sh\nexit 1\n")
    (job.folder / "bin/python").chmod(0o755)
    assert job.run().code == 2 and "MPIRL_VENV" in job.printed
    assert job.run(MPIRL_VENV="/nowhere").code == 2 and "/nowhere" in job.printed and not job.told("srun")


def test_array_tasks_differ_in_their_seed(job):
    job.run("emulator=catch", script="slurm-array.sbatch", SLURM_ARRAY_JOB_ID="15", SLURM_ARRAY_TASK_ID="3")
    assert job.told("srun")[-4:] == ["run_dir=runs/mpirl-15/3", "trial=3", "emulator=catch", "seed=3"]


def test_array_tasks_take_their_line_of_the_list(job):
    (job.folder / "sweep.txt").write_text("seed=1\nalgorithm.epochs=2   seed=5\n\n")
    array = {"SLURM_ARRAY_JOB_ID": "15", "MPIRL_LIST": "sweep.txt", "script": "slurm-array.sbatch"}
    assert job.run(SLURM_ARRAY_TASK_ID="2", **array).told("srun")[-3:] == ["trial=2", "algorithm.epochs=2", "seed=5"]
    assert job.run(SLURM_ARRAY_TASK_ID="3", **array).code == 2 and "nothing in line 3" in job.printed


def test_array_tasks_have_run_directories_of_their_own(job):
    array = {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2", "script": "slurm-array.sbatch"}
    assert "run_dir=sweep/2" in job.run(MPIRL_RUN_DIR="sweep", **array).told("srun")
    assert job.run("run_dir=sweep", **array).code == 2 and "set MPIRL_RUN_DIR=sweep" in job.printed


def test_an_srun_that_hangs_after_the_run_has_ended_is_ended(job):
    job.leave(state="finished", completed=True)
    with open(job.folder / "step", "a") as step:
        step.write("exec sleep 300\n")
    start = time.monotonic()
    assert job.run(MPIRL_PATIENCE="1").code == 0 and "completed iteration 20" in job.printed
    assert time.monotonic() - start < 20


def test_an_array_script_wants_an_array(job):
    assert job.run(script="slurm-array.sbatch").code != 0 and "--array=1-5" in job.printed


def test_scripts_submitted_elsewhere_say_where_they_look(job):
    job.run(script="slurm-het.sbatch", SLURM_SUBMIT_DIR="/nowhere")
    assert job.code == 2 and "/nowhere/launch/slurm.sbatch" in job.printed and "MPIRL_ROOT" in job.printed
