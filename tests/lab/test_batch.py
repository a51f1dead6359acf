"""launch/slurm.sbatch on the lab's Slurm: a job told to save requeues itself, resumes, and loses and repeats nothing."""

from __future__ import annotations

from namespaces import wait_until
from trainings import check_complete, has_begun, nothing_runs, status

JOB = "sbatch --nodes=5 --ntasks=9 --time=10 --output={folder}/words launch/slurm.sbatch"
SLOW = "emulator=catch emulator.latency=0.01 algorithm.epochs=1"


def test_a_signalled_job_requeues_itself_and_resumes_until_all_is_done(lab, tmp_path):
    run = tmp_path / "run"
    submitted = lab.run(
        f"{JOB.format(folder=tmp_path)} {SLOW} total_steps=20000 run_dir={run}", env={"MPIRL_LEARNER": "gpu0"}, timeout=60
    )
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.split()[-1]
    wait_until(has_begun(run, 3), "the first start", 120)
    lab.run(["scancel", "--signal=USR1", job])
    wait_until(lambda: "requeue signal SIGUSR1" in (tmp_path / "words").read_text(), "the requeue", 60)
    saved = status(run)["iteration"]
    wait_until(lambda: (run / "COMPLETED").exists(), "the end", 240)
    words = (tmp_path / "words").read_text()
    assert f"iteration {saved}," in next(line for line in words.splitlines() if line.startswith("resumed"))
    assert status(run)["hosts"][0] == "gpu0" and len(status(run)["hosts"]) == 9
    check_complete(run)
    wait_until(lambda: "completed iteration" in (tmp_path / "words").read_text(), "the script's last words", 30)
    assert nothing_runs(lab)


def test_an_array_makes_a_run_of_every_task(lab, tmp_path):
    script = "launch/slurm-array.sbatch"
    settings = "emulator=catch total_steps=1500 algorithm.epochs=1"
    environment = {"MPIRL_RUN_DIR": str(tmp_path / "sweep")}
    words = lab.run(
        f"sbatch --wait --array=1-2 --nodes=1 --ntasks=3 --time=10 --output={tmp_path}/words-%a {script} {settings}",
        env=environment,
        timeout=240,
    )
    assert words.returncode == 0, [path.read_text()[-2000:] for path in tmp_path.glob("words-*")]
    done = sorted(path.parent for path in tmp_path.rglob("COMPLETED"))
    assert len(done) == 2
    assert {status(run)["trial"] for run in done} == {"1", "2"}
    for run in done:
        check_complete(run)


def test_a_heterogeneous_job_has_the_learner_on_the_node_with_the_gpu(lab, tmp_path):
    settings = "emulator=catch total_steps=3000 algorithm.epochs=1"
    words = lab.run(
        f"sbatch --wait --output={tmp_path}/words launch/slurm-het.sbatch {settings} run_dir={tmp_path}/run",
        env={"MPIRL_PATIENCE": "10"},
        timeout=240,
    )
    assert words.returncode == 0, (tmp_path / "words").read_text()[-3000:]
    hosts = status(tmp_path / "run")["hosts"]
    assert hosts[0] == "gpu0" and len(hosts) == 9 and "gpu0" not in hosts[1:]
    check_complete(tmp_path / "run")
