"""What a segment holds: specs exactly, and datasets that plain h5py reads."""

import json

import h5py
import numpy as np
import pytest

from mpirl.archive.format import EPISODE_COLUMNS, EPISODE_DEFAULTS, chunk_shape, episode_row, filters, specs_from_json, specs_to_json
from mpirl.archive.writer import SegmentWriter
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import Field, Layout


def test_specs_come_back_equal_from_json(layout):
    assert specs_from_json(specs_to_json(layout.specs)) == layout.specs


def test_infinite_bounds_are_strict_json_and_come_back():
    spec = ArraySpec((2,), "float32", low=(float("-inf"), 0.1), high=float("inf"))
    specs = Specs({"observation": spec}, ArraySpec((), "int8"))
    json.loads(specs_to_json(specs), parse_constant=pytest.fail)
    assert specs_from_json(specs_to_json(specs)) == specs


def test_array_bounds_come_back_as_tuples():
    bound = np.array([[0.1, 1.0]], np.float32)
    specs = Specs({"observation": ArraySpec((1, 2), "float32", low=bound)}, ArraySpec((), "int8"))
    assert specs_from_json(specs_to_json(specs)).observation["observation"].low == tuple(map(tuple, bound.tolist()))


@pytest.mark.parametrize(
    "entry, expected",
    [
        (Field((132, 84, 84), "uint8"), (1, 1, 15, 84, 84)),  # 9 equal chunks
        (Field((10, 84, 84), "uint8"), (1, 1, 10, 84, 84)),
        (Field((129, 1000, 1000, 3), "uint8"), (1, 1, 1, 1000, 1000, 3)),
        (Field((129, 4), "float32"), (1, 8, 129, 4)),
        (Field((), "int64"), (1, 8)),
        (Field((0,), "float32"), (1, 8, 1)),
        (Field((4096,), "float32"), (1, 8, 4096)),
    ],
)
def test_chunks_are_frames_of_one_lane_or_one_iteration_of_all_lanes(entry, expected):
    assert chunk_shape(8, entry) == expected


def test_plain_h5py_reads_every_field_and_attribute(tmp_path, layout, simulate):
    simulation = simulate(layout, num_lanes=3)
    writer = SegmentWriter(tmp_path, layout, {"seed": 7, "lane_rank": [1, 1, 2]})
    written = [simulation.batch(iteration) for iteration in range(2)]
    for iteration, (batch, rows) in enumerate(written):
        writer.write(iteration, iteration + 10, batch, rows)
    writer.close()
    with h5py.File(tmp_path / "000000.h5") as file:
        assert file.attrs["format"] == "mpirl.archive" and file.attrs["format_version"] == 2
        assert file.attrs["steps"] == layout.steps and file.attrs["context"] == layout.context
        assert json.loads(file.attrs["header"]) == {"seed": 7, "lane_rank": [1, 1, 2]}
        table = json.loads(file.attrs["table"])
        assert table.keys() == layout.table().keys()
        for name, entry in table.items():
            assert file[name].shape == (2, 3, *entry["shape"]) and file[name].dtype == entry["dtype"]
            assert np.array_equal(file[name][1], written[1][0][name])
        assert file["iteration"][:].tolist() == [0, 1] and file["learner_version"][:].tolist() == [10, 11]
        assert set(file["episodes"]) == set(EPISODE_COLUMNS)


def test_bytes_are_not_shuffled_and_wider_numbers_are(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {})
    writer.write(0, 0, *simulation.batch(0))
    writer.close()
    with h5py.File(tmp_path / "000000.h5") as file:
        assert file["observation"].compression == "gzip" and file["observation"].compression_opts == 1
        assert not file["observation"].shuffle and file["reward"].shuffle


def test_specs_with_a_bound_for_every_pixel_fit(tmp_path, simulate):
    bound = tuple(tuple(float(x) for x in row) for row in np.random.default_rng(0).random((100, 100)))
    layout = Layout(Specs({"observation": ArraySpec((100, 100), "float32", high=bound)}, ArraySpec((), "int8")), steps=2)
    writer = SegmentWriter(tmp_path, layout, {})
    writer.write(0, 0, *simulate(layout).batch(0))
    writer.close()
    with h5py.File(tmp_path / "000000.h5") as file:
        assert specs_from_json(file.attrs["specs"]) == layout.specs


def test_an_episode_row_with_an_unknown_column_is_refused(simulation):
    row = next(rows[0] for rows in (simulation.batch(i)[1] for i in range(9)) if rows)
    assert episode_row(row, {"host": "here"}) == {**EPISODE_DEFAULTS, **{name: value for name, value in row.items() if value is not None}, "host": "here"}
    with pytest.raises(AssertionError, match="columns are"):
        episode_row({**row, "score": 1})


def test_unknown_compression_and_level_are_the_users_mistakes():
    with pytest.raises(UserError, match="'lzma'.*choose gzip, zstd or none"):
        filters("lzma", 1)
    with pytest.raises(UserError, match="level 12: gzip takes 0 to 9"):
        filters("gzip", 12)


def test_zstd_without_its_package_names_the_extra(tmp_path, simulation, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hdf5plugin", None)
    with pytest.raises(UserError, match=r"pip install mpirl\[zstd\]"):
        SegmentWriter(tmp_path, simulation.layout, {}, compression="zstd")


def test_an_extra_with_a_name_of_the_archive_is_refused(tmp_path):
    specs = Specs({"observation": ArraySpec((), "int8")}, ArraySpec((), "int8"), {"episodes": ArraySpec((), "int8")})
    with pytest.raises(UserError, match="its own 'episodes'"):
        SegmentWriter(tmp_path, Layout(specs, steps=1), {})
