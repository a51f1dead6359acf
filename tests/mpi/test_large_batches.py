"""Batches and lanes beyond 2 GiB, under mpirun: with small limits, and with real data where there is memory for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launch import mpirun

HERE = Path(__file__).parent
NEEDED = 8e9  # bytes of memory: two copies of the data, and some room


def large(ranks: int, way: str, what: str) -> str:
    done = mpirun(ranks, [HERE / "large_batches.py", way, what], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def memory() -> None:
    available = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    if available < NEEDED:
        pytest.skip(f"{available / 1e9:.0f} GB of memory are free, this takes {NEEDED / 1e9:.0f}")


@pytest.mark.parametrize("way", ["direct", "host"])
def test_lanes_of_many_blocks_are_gathered_whole(way: str) -> None:
    assert large(5, way, "limits").count("limits held") == 5


def test_one_lane_larger_than_2_gib_is_gathered(memory) -> None:
    assert "direct: 2.00 GiB in lanes [0, 1, 0] of 2,147,495,993 bytes" in large(3, "direct", "lane")


@pytest.mark.parametrize("way", ["direct", "host"])
def test_a_batch_larger_than_2_gib_is_gathered(memory, way: str) -> None:
    assert f"{way}: 2.24 GiB in lanes [0, 2, 2, 2, 2] of 300,000,001 bytes" in large(5, way, "batch")
