"""The survey of archives: which there are, their episodes, and what does not go together."""

import numpy as np
import pytest
from recorded import SPECS, length_of, record, return_of

from mpirl.archive.survey import find_archives, survey
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs


def test_an_archive_is_found_as_such_in_its_run_and_by_a_pattern(tmp_path):
    for name in ("one", "two"):
        record(tmp_path / name / "archive", iterations=2)
    (tmp_path / "empty").mkdir()
    one, two = (tmp_path / name / "archive" for name in ("one", "two"))
    assert find_archives(str(tmp_path / "one")) == find_archives(str(one)) == (one,)
    assert find_archives(f"{tmp_path}/*") == find_archives([f"{tmp_path}/*", str(one)]) == (one, two)


@pytest.mark.parametrize("place", ["nowhere", "no*"])
def test_a_place_without_an_archive_is_named(tmp_path, place):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=rf"{place.replace('*', '.')}.*give"):
        find_archives(str(tmp_path / place))


def test_episodes_are_found_by_their_ids_in_each_archive(tmp_path):
    finished = [record(tmp_path / name, iterations=n) for name, n in (("a", 5), ("b", 9))]
    found = survey([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len(found.episodes["id"]) == sum(map(len, finished))
    for archive, known in enumerate(finished):
        ids = np.array([*known, 1000])
        rows = found.rows(archive, ids)
        assert rows[-1] == -1 and (found.episodes["archive"][rows[:-1]] == archive).all()
        assert (found.episodes["id"][rows[:-1]] == list(known)).all()
        assert found.episodes["return"][rows[0]] == return_of(ids[0])
        assert found.episodes["length"][rows[0]] == length_of(ids[0])
    assert set(found.episodes["task"]) == {""}


def test_archives_of_different_specs_are_refused(tmp_path):
    record(tmp_path / "a")
    record(tmp_path / "b", specs=Specs(SPECS.observation, ArraySpec((), "int64", num_values=5)))
    with pytest.raises(UserError, match="different emulators"):
        survey([str(tmp_path / "a"), str(tmp_path / "b")])
