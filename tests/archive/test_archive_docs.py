"""docs/archive.md: its reader works and is short, and its tables name everything that a segment holds."""

import re
from pathlib import Path

import h5py
import numpy as np

from mpirl.archive.format import EPISODE_COLUMNS
from mpirl.archive.writer import SegmentWriter

PAGE = (Path(__file__).parents[2] / "docs" / "archive.md").read_text()


def archive(directory, simulation):
    writer = SegmentWriter(directory, simulation.layout, {}, segment_iterations=4)
    for iteration in range(13):
        writer.write(iteration, 0, *simulation.batch(iteration))
    writer.close()


def test_the_documented_reader_reconstructs_every_whole_episode(tmp_path, layout, simulate):
    simulation = simulate(layout, num_lanes=3)
    archive(tmp_path, simulation)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names = {}
    exec(code, names)
    for field in layout.specs.observation:
        episodes = names["read_episodes"](tmp_path, field)
        assert episodes.keys() == simulation.played.keys() and len(episodes) >= 3
        for number, (observations, actions, rewards) in simulation.played.items():
            read = episodes[number]
            assert np.array_equal(read[0], [observation[field] for observation in observations])
            assert np.array_equal(read[1], actions) and np.array_equal(read[2], rewards)


def test_the_page_names_every_dataset_column_and_attribute(tmp_path, simulation):
    archive(tmp_path, simulation)
    with h5py.File(tmp_path / "000000.h5") as file:
        names = {*file, *EPISODE_COLUMNS, *file.attrs}
    assert names <= set(re.findall(r"`([a-z_]+)`", PAGE))
