import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpirl import heap

ROOT = Path(__file__).resolve().parents[1]
glibc_only = pytest.mark.skipif(
    not heap.has_glibc() or not Path("/proc/self/environ").exists(), reason="the cache of small chunks is glibc's"
)

RESTARTED = """
import os, sys
from mpirl.heap import restart_without_tcache
restart_without_tcache()
begun_with = dict(pair.split("=", 1) for pair in open("/proc/self/environ").read().split("\\0") if pair)
print(begun_with.get("GLIBC_TUNABLES"), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
"""

PLAYING = """
from mpirl import environment
from mpirl.heap import restart_without_tcache
restart_without_tcache()
from contextlib import nullcontext
from functools import partial
import numpy as np, torch
from mpirl.emulators.ale import AtariLanes
from mpirl.models.conv import NatureCNN
from mpirl.policies.local import LocalPolicy
from mpirl.assembly import draw_noise
from mpirl.schedule import Command
from mpirl.trajectory import Layout, Trajectory
from mpirl.worker import Lanes, Worker

torch.set_num_threads(1)
settings = dict(repeat_action_probability=0.0, full_action_space=False, noop_max=30, use_fire_reset=True, life_loss=False)
emulator = AtariLanes(16, "pong", **settings)
policy = LocalPolicy(NatureCNN(emulator.specs), nullcontext)
policy.refresh()
trajectory = Trajectory.allocate(Layout(emulator.specs, 32, context=3), 16)
lanes = Lanes(0, 16, np.zeros(16, np.int64), run_seed=1, reseed_every=1)
worker = Worker(emulator, policy, trajectory, lanes, partial(draw_noise, policy.model.distribution))

def mebibytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4 / 1024

found = []
for iteration in range(14):
    worker.collect(Command(iteration, version=0))
    found.append(mebibytes())
worker.close()
print(found[5], found[-1])
"""


def python(*args, **variables):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    found = subprocess.run([sys.executable, *args], env=environ, text=True, capture_output=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("", "glibc.malloc.tcache_count=0"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.tcache_count=0"),
        ("glibc.malloc.tcache_count=7", None),
        ("glibc.malloc.check=0:glibc.malloc.tcache_count=0", None),
    ],
)
def test_what_the_user_says_of_malloc_stays(given, wanted, monkeypatch):
    monkeypatch.setattr(heap, "has_glibc", lambda: True)
    assert heap.without_tcache({"GLIBC_TUNABLES": given}) == wanted


def test_without_glibc_nothing_is_started_anew(monkeypatch):
    monkeypatch.setattr(heap, "has_glibc", lambda: False)
    assert heap.without_tcache({}) is None


@glibc_only
def test_a_program_is_started_anew_once_with_its_arguments_and_leaves_its_children_alone():
    assert python("-c", RESTARTED, "a=b", "c d", GLIBC_TUNABLES="") == ["glibc.malloc.tcache_count=0", "None", "a=b", "c", "d"]
    given = "glibc.malloc.check=0"
    assert python("-c", RESTARTED, GLIBC_TUNABLES=given)[1] == given
    assert python("-c", RESTARTED, GLIBC_TUNABLES="glibc.malloc.tcache_count=7") == ["glibc.malloc.tcache_count=7"] * 2


@glibc_only
def test_training_runs_without_the_cache(tmp_path):
    command = [sys.executable, "-m", "mpirl.main", "transport=threads", "emulator=catch", f"run_dir={tmp_path}/run"]
    environ = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begun_with = Path(f"/proc/{process.pid}/environ")
        end = time.monotonic() + 30
        while b"glibc.malloc.tcache_count=0" not in begun_with.read_bytes():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


@pytest.mark.atari
@glibc_only
def test_a_worker_does_not_grow():
    pytest.importorskip("ale_py")
    before, after = map(float, python("-c", PLAYING, GLIBC_TUNABLES=""))
    assert after - before < 10, f"{before} MiB, 8 iterations later {after}"
