"""What an archive keeps: thinning, a budget of bytes, and what is said of the rest."""

import h5py
import numpy as np
import pytest

from mpirl.archive.keeping import RECENT, Thinning, read_ledger
from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.archive.resume import resume_at
from mpirl.archive.writer import SegmentWriter
from mpirl.errors import UserError
from mpirl.trajectory import is_step


def write(directory, simulation, iterations, **settings):
    """The reasons of what was not kept, by iteration; the writer's deleted steps; true steps by iteration."""
    writer = SegmentWriter(directory, simulation.layout, {}, **settings)
    reasons, steps = {}, {}
    for iteration in iterations:
        batch, rows = simulation.batch(iteration)
        steps[iteration] = int(is_step(batch["step_type"]).sum())
        reasons[iteration] = writer.write(iteration, 0, batch, rows)
    writer.close()
    return reasons, dict(writer.deleted), steps


def kept(directory):
    return [iteration for iteration, *_ in read_archive(directory)]


def test_every_so_manieth_iteration_is_kept(tmp_path, simulation):
    reasons, _, _ = write(tmp_path, simulation, range(1, 11), every=4)
    assert kept(tmp_path) == [4, 8]
    assert {iteration for iteration, reason in reasons.items() if not reason} == {4, 8}
    assert set(reasons.values()) == {"", "by archive.every=4"}
    with Segment(segments(tmp_path)[0]) as segment:
        assert segment.keeping == {"every": 4, "min_return_quantile": None, "max_bytes": None}


def test_thinned_steps_are_neither_written_nor_counted(tmp_path, simulation):
    writer = SegmentWriter(tmp_path, simulation.layout, {}, every=2)
    for iteration in (1, 2):
        batch, rows = simulation.batch(iteration)
        writer.write(iteration, 0, batch, rows)
    assert writer.flush() == writer.steps == is_step(batch["step_type"]).sum()
    writer.close()


def test_iterations_stay_in_which_an_episode_at_or_above_the_quantile_ends():
    random, recent = np.random.default_rng(0), []
    thinning = Thinning(min_return_quantile=0.9)
    for iteration in range(500):
        returns = random.normal(size=random.integers(0, 4)).tolist()
        recent = [*recent, *returns][-RECENT:]
        reason = thinning.reason(iteration, [{"return": value} for value in returns])
        good = bool(returns) and max(returns) >= np.quantile(recent, 0.9)
        assert (reason == "") == good and reason in ("", "by archive.min_return_quantile=0.9")


def test_both_rules_must_hold():
    thinning = Thinning(every=2, min_return_quantile=0.5)
    rows = [[{"return": value}] for value in (1.0, 9.0, 3.0, 2.0)]
    assert [bool(thinning.reason(iteration, row)) for iteration, row in enumerate(rows, start=1)] == [True, False, True, True]


def test_the_oldest_segments_go_when_all_are_too_large_and_the_newest_never(tmp_path, simulation):
    _, nothing, _ = write(tmp_path / "all", simulation, range(8), segment_iterations=2)
    assert nothing == {} and not read_ledger(tmp_path / "all")
    size = max(path.stat().st_size for path in segments(tmp_path / "all"))
    _, deleted, steps = write(tmp_path / "few", simulation, range(8), segment_iterations=2, max_bytes=2 * size + size // 2)
    assert kept(tmp_path / "few") == [4, 5, 6, 7]
    assert deleted == {f"by archive.max_bytes={2 * size + size // 2}": sum(steps[iteration] for iteration in range(4))}
    _, deleted, steps = write(tmp_path / "one", simulation, range(8), segment_iterations=2, max_bytes=1)
    assert kept(tmp_path / "one") == [6, 7] and sum(deleted.values()) == sum(steps.values()) - steps[6] - steps[7]


def test_the_ledger_names_what_was_deleted(tmp_path, simulation):
    _, _, steps = write(tmp_path, simulation, range(6), segment_iterations=2, max_bytes=1)
    ledger = read_ledger(tmp_path)
    assert [line["segment"] for line in ledger] == ["000000.h5", "000001.h5"]
    assert [line["iterations"] for line in ledger] == [[0, 1], [2, 3]]
    assert [line["steps"] for line in ledger] == [[steps[0], steps[1]], [steps[2], steps[3]]]


def test_later_writers_go_on_counting_and_a_resume_takes_back_what_is_played_again(tmp_path, simulation):
    _, before, steps = write(tmp_path, simulation, range(6), segment_iterations=2, max_bytes=1)
    writer = SegmentWriter(tmp_path, simulation.layout, {})
    assert writer.deleted == before
    writer.close()
    assert resume_at(tmp_path, 2) == 2
    writer = SegmentWriter(tmp_path, simulation.layout, {})
    assert sum(writer.deleted.values()) == steps[0] + steps[1] + steps[2]
    writer.close()


def test_a_deletion_that_was_cut_off_is_counted_once(tmp_path, simulation):
    write(tmp_path, simulation, range(4), segment_iterations=2)
    oldest, newest = segments(tmp_path)
    whole = oldest.read_bytes()
    _, first, _ = write(tmp_path, simulation, [4], max_bytes=newest.stat().st_size * 2)
    assert [line["segment"] for line in read_ledger(tmp_path)] == ["000000.h5"]
    oldest.write_bytes(whole)  # as if the process had been killed before the file was gone
    _, again, _ = write(tmp_path, simulation, [5], max_bytes=newest.stat().st_size * 3)
    assert again == first and kept(tmp_path) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"every": 0}, "archive.every=0"),
        ({"min_return_quantile": 1.5}, "archive.min_return_quantile=1.5"),
        ({"max_bytes": 0}, "archive.max_bytes=0"),
        ({"content": "some"}, "archive.content='some'"),
    ],
)
def test_rules_that_cannot_be_are_refused(tmp_path, simulation, settings, message):
    with pytest.raises(UserError, match=message):
        SegmentWriter(tmp_path, simulation.layout, {}, **settings)


def test_an_archive_of_actions_has_what_replay_needs_and_says_so(tmp_path, layout, simulate):
    simulation = simulate(layout)
    batches = [simulation.batch(iteration) for iteration in range(5)]
    writer = SegmentWriter(tmp_path, layout, {}, content="actions", segment_iterations=2)
    for iteration, (batch, rows) in enumerate(batches):
        writer.write(iteration, 0, batch, rows)
    writer.close()
    fields = {"step_type", "action", "reward", "discount", "episode", "seed", "version", "collected"}
    with Segment(segments(tmp_path)[0]) as segment:
        assert segment.content == "actions" and set(segment.fields) == fields and segment.layout == layout
        for name in fields:
            assert np.array_equal(segment.part(name, 1, slice(None)), batches[1][0][name])
        assert all(segment.part(name, 0, 0) is None for name in (*layout.specs.observation, "log_prob", "core"))
        assert [row["id"] for row in segment.episodes()] == [row["id"] for _, rows in batches[:2] for row in rows]
        with pytest.raises(UserError, match="no observations.*restore -o"):
            segment.trajectory(0)
    assert resume_at(tmp_path, 2) == 2
    with Segment(segments(tmp_path)[-1]) as segment:
        assert segment.content == "actions" and segment.iterations.tolist() == [2]
        assert np.array_equal(segment.part("action", 0, slice(None)), batches[2][0]["action"])


def test_a_segment_of_version_1_reads_with_defaults(tmp_path, simulation):
    write(tmp_path, simulation, range(3))
    path = segments(tmp_path)[0]
    with Segment(path) as segment:
        expected = segment.episodes()
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 1
        for name in ("content", "keeping"):
            del file.attrs[name]
        for name in ("task", "settings", "first_version", "last_version"):
            del file["episodes"][name]
    with Segment(path) as segment:
        assert segment.content == "all" and segment.keeping == {} and segment.episodes() == expected
        assert segment.column("task").tolist() == [""] * len(expected)
        assert segment.column("last_version").tolist() == [-1] * len(expected)
        assert segment.trajectory(0)["action"].shape == (2, 7)
