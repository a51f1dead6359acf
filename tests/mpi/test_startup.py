"""The start under mpirun: late ranks are named while rank 0 waits, and when it has waited long enough."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

from launch import end, environment, mpirun, start, survivors

SCENARIOS = Path(__file__).with_name("transport_startup.py")
MAIN = ["-m", "mpirl.main", "emulator=catch", "total_steps=300"]
HOST = re.escape(socket.gethostname())
STUCK = """
import os, signal, threading
from mpirl.emulators.catch import Catch

class Stuck(Catch):
    def __init__(self, *settings, **named):
        rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
        if rank == "2":
            os.kill(os.getpid(), signal.SIGSTOP)
        if threading.current_thread().name == "rank 2":
            threading.Event().wait(60)
        super().__init__(*settings, **named)
"""
LACKING = """
import os, sys
if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) in {ranks}:
    sys.modules["{module}"] = None
"""


def ended(n: int, arguments: list, env: dict[str, str] | None = None, timeout: float = 90.0) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a job of which nothing may be left."""
    process = start(n, arguments, env)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        assert survivors(process, 2) == []
    finally:
        end(process)
    return process.returncode, stdout, stderr


def first_on_the_path(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{folder}:{environment()['PYTHONPATH']}"}


def told(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("mpirl:")]


def test_rank_0_tells_that_it_waits_in_mpi_init() -> None:
    done = mpirun(3, [SCENARIOS, "late_process"])
    assert done.returncode == 0 and done.stdout.count("is through") == 3
    [first, *_] = told(done.stderr)
    assert re.fullmatch(r"mpirl: waiting in MPI_Init for 0\.8\d* s: not all of the 3 ranks have started yet", first)


def test_a_rank_that_never_comes_to_mpi_init_ends_the_job_at_the_limit() -> None:
    code, _, stderr = ended(3, [SCENARIOS, "lost_process"])
    assert code != 0
    assert stderr.count("start-up: MPI_Init has not returned on rank 0 after 1 s: not all of the 3 ranks have started") == 1
    assert stderr.count("start-up") == 1 and "Traceback" not in stderr


def test_rank_0_tells_who_is_late_until_the_start_is_over() -> None:
    done = mpirun(3, [SCENARIOS, "late_parts"])
    assert done.returncode == 0 and done.stdout.count("is through") == 3
    lines = told(done.stderr)
    assert len(lines) == 1, done.stderr
    assert re.fullmatch(rf"mpirl: 0/2 workers ready, waiting for {HOST} \(ranks 1, 2\) for 1(\.\d)? s", lines[0])


def test_mpi_raises_its_errors_and_is_finalized() -> None:
    done = mpirun(2, [SCENARIOS, "errors_are_exceptions"])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 raised Exception", "rank 1 raised Exception"]


def stuck(tmp_path: Path, deadline: float) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a run whose rank 2 sticks in its emulator's constructor."""
    (tmp_path / "stuck.py").write_text(STUCK)
    arguments = [*MAIN, "emulator._target_=stuck.Stuck", f"startup_deadline={deadline}", f"run_dir={tmp_path}/run"]
    return arguments, first_on_the_path(tmp_path)


def test_a_process_that_is_stopped_while_it_starts_is_named_and_ends_the_job(tmp_path: Path) -> None:
    code, _, stderr = ended(3, *stuck(tmp_path, 10))
    assert code != 0
    assert re.search(rf"^mpirl: 1/2 workers ready, waiting for {HOST} \(rank 2\) for \d\.?\d* s$", stderr, re.MULTILINE), stderr
    assert len(re.findall(rf"^mpirl: start-up: no sign of {HOST} \(rank 2\) after 10 s\.", stderr, re.MULTILINE)) == 1
    assert stderr.count("start-up:") == 1 and "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_a_thread_that_sticks_while_it_starts_is_named_too(tmp_path: Path) -> None:
    arguments, env = stuck(tmp_path, 2)
    command = [sys.executable, *arguments, "transport=threads", "ranks=3"]
    done = subprocess.run(command, env=environment(env), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = told(done.stderr)
    assert re.fullmatch(rf"mpirl: 1/2 workers ready, waiting for {HOST} \(rank 2\) for 0\.5\d* s", lines[0]), done.stderr
    assert re.match(rf"mpirl: start-up: no sign of {HOST} \(rank 2\) after 2 s\.", lines[-1])
    assert done.stderr.count("start-up:") == 1 and "Traceback" not in done.stderr


def lacking(tmp_path: Path, module: str, *ranks: str) -> dict[str, str]:
    """The environment of a job of which some ranks lack a module."""
    (tmp_path / "sitecustomize.py").write_text(LACKING.format(module=module, ranks=ranks))
    return first_on_the_path(tmp_path)


def test_a_host_without_torch_is_named_with_the_mend(tmp_path: Path) -> None:
    code, _, stderr = ended(4, [*MAIN, f"run_dir={tmp_path}/run"], lacking(tmp_path, "torch", "2"))
    assert code != 0
    [line] = told(stderr)
    assert re.match(rf"mpirl: rank 2 on {HOST}: .*torch.* on host {HOST}: install it there for {sys.executable}", line), line
    assert "Traceback" not in stderr


def test_a_host_without_mpi4py_is_named_with_the_mend(tmp_path: Path) -> None:
    code, _, stderr = ended(3, [*MAIN, f"run_dir={tmp_path}/run"], lacking(tmp_path, "mpi4py", "2"))
    assert code != 0
    [line] = told(stderr)
    assert re.match(rf"mpirl: rank 2: MPI cannot be used \(.*mpi4py.*\) on host {HOST}: pip install", line), line
    assert "Traceback" not in stderr


def test_what_all_hosts_lack_is_told_once(tmp_path: Path) -> None:
    code, _, stderr = ended(3, [*MAIN, f"run_dir={tmp_path}/run"], lacking(tmp_path, "numpy", "0", "1", "2"))
    assert code != 0
    [line] = told(stderr)
    assert "numpy" in line and "install it there" in line and "Traceback" not in stderr
