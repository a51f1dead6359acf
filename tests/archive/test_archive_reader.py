"""What was written is what is read, and what is not an archive is refused."""

import h5py
import numpy as np
import pytest

from mpirl.archive.format import EPISODE_DEFAULTS
from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.archive.writer import SegmentWriter
from mpirl.errors import UserError


def write(directory, simulation, num_iterations, **settings):
    """Archive `num_iterations` batches; return them as (iteration, version, batch, rows)."""
    writer = SegmentWriter(directory, simulation.layout, {"lane_host": ["a", "b"]}, **settings)
    written = [(i, 10 + i, *simulation.batch(i)) for i in range(num_iterations)]
    for entry in written:
        writer.write(*entry)
    writer.close()
    return written


def assert_equal(read, written):
    assert [entry[:2] for entry in read] == [entry[:2] for entry in written]
    for (*_, batch), (_, _, expected, _) in zip(read, written):
        assert batch.layout == expected.layout and batch.keys() == expected.keys()
        for name in expected:
            assert batch[name].dtype == expected[name].dtype and np.array_equal(batch[name], expected[name]), name


def test_every_layout_comes_back_bit_for_bit(tmp_path, layout, simulate):
    written = write(tmp_path, simulate(layout), 5, segment_iterations=2)
    assert len(segments(tmp_path)) == 3
    assert_equal(list(read_archive(tmp_path)), written)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_every_compression_comes_back_bit_for_bit(tmp_path, layout, simulate, compression):
    if compression == "zstd":
        pytest.importorskip("hdf5plugin")
    written = write(tmp_path, simulate(layout), 3, compression=compression, level=3)
    assert_equal(list(read_archive(tmp_path)), written)


def test_episodes_come_back_with_the_host_of_their_lane(tmp_path, simulation):
    written = write(tmp_path, simulation, 4, segment_iterations=3)
    rows = []
    for path in segments(tmp_path):
        with Segment(path) as segment:
            rows += segment.episodes()
    expected = [row for *_, rows in written for row in rows]
    known = [{name: value for name, value in row.items() if value is not None} for row in expected]
    assert rows == [{**EPISODE_DEFAULTS, **row, "host": "ab"[row["lane"]]} for row in known]
    assert len(rows) == len(simulation.played) > 2


def test_an_iteration_without_episodes_has_an_empty_table(tmp_path, simulate, layout):
    simulation = simulate(layout)
    batch, _ = simulation.batch(0)
    writer = SegmentWriter(tmp_path, layout, {})
    writer.write(0, 0, batch, [])
    writer.close()
    with Segment(tmp_path / "000000.h5") as segment:
        assert segment.episodes() == []


def test_a_missing_or_empty_folder_is_no_archive(tmp_path):
    with pytest.raises(UserError, match="no archive at"):
        segments(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no closed segment"):
        list(read_archive(tmp_path))


def test_other_files_are_no_segments(tmp_path):
    (tmp_path / "000000.h5").write_text("not HDF5")
    with pytest.raises(UserError, match="000000.h5 is not a segment"):
        Segment(tmp_path / "000000.h5")
    with h5py.File(tmp_path / "000001.h5", "w") as file:
        file["a"] = 1
    with pytest.raises(UserError, match="lacks the attribute format"):
        Segment(tmp_path / "000001.h5")


def test_a_newer_format_says_which_mpirl_reads_it(tmp_path, simulation):
    write(tmp_path, simulation, 1)
    with h5py.File(tmp_path / "000000.h5", "a") as file:
        file.attrs.update({"format_version": 9, "mpirl_version": "8.1"})
    with pytest.raises(UserError, match="archive format 9.*upgrade mpirl to 8.1"):
        Segment(tmp_path / "000000.h5")


def test_another_field_table_is_refused_by_name(tmp_path, simulation):
    write(tmp_path, simulation, 1)
    with h5py.File(tmp_path / "000000.h5", "a") as file:
        file.attrs["table"] = "{}"
    with Segment(tmp_path / "000000.h5") as segment, pytest.raises(UserError, match="field table of mpirl"):
        segment.trajectory(0)
