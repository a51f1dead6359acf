"""`python -m mpirl.replay`: what its commands print and write, and one line for every mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from archived import CARTPOLE, CATCH, MACHADO, flip, record

from mpirl import replay
from mpirl.archive.reader import segments
from mpirl.progress import Progress
from mpirl.statistics import running_mean
from mpirl.stretches import survey

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of Catch: 2 lanes of rank 1, 1 lane of rank 2, which has a larger board. Do not change it."""
    return record(tmp_path_factory.mktemp("catch"), CATCH, lanes=(2, 1))


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the program: (exit code, stdout, stderr)."""

    def called(*arguments: object) -> tuple[int, str, str]:
        code = replay.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMI_", "PMIX_", "SLURM_"))]:
        monkeypatch.delenv(name)
    return called


def test_list_shows_filters_and_sorts(run, call):
    code, out, _ = call(run, "list")
    head, *lines = out.splitlines()
    assert code == 0 and head.split() == ["id", "emulator", "lane", "rank", "host", "length", "return", "reason", "iteration", "when"]
    rows = json.loads(call(run, "list", "--json")[1])
    assert len(rows) == len(lines) == 30 and {row["emulator"] for row in rows} == {"Catch"}
    assert [row["end_iteration"] for row in rows] == sorted(row["end_iteration"] for row in rows)
    best = json.loads(call(run / "archive", "list", "--json", "--sort", "return", "--reverse", "--limit", 3)[1])
    assert [row["return"] for row in best] == [1, 1, 1]
    some = json.loads(call(run, "list", "--json", "--where", "return > 0", "--where", "rank=2", "--where", "emulator=Catch")[1])
    assert [row["id"] for row in some] == [row["id"] for row in rows if row["return"] > 0 and row["rank"] == 2]
    assert "no such episodes" in call(run, "list", "--where", "length>99")[1]


@pytest.mark.filterwarnings("ignore:.*CartPole-v0")
def test_emulators_are_named_by_game_or_id(tmp_path, call):
    changed = record(tmp_path, CARTPOLE, lanes=(1, 1), changes=[{}, {}, {"id": "CartPole-v0"}])
    rows = json.loads(call(changed, "list", "--json")[1])
    assert {(row["rank"], row["emulator"]) for row in rows} == {(1, "CartPole-v1"), (2, "CartPole-v0")}


def test_show_goes_through_an_episode(run, call):
    code, out, _ = call(run, "show", 4)
    facts, where, head, *lines = out.splitlines()
    assert code == 0 and facts.startswith("episode 4: Catch, lane 1 of rank 1") and "in 5 steps, terminated" in facts
    assert head.split() == ["t", "step_type", "action", "reward", "log_prob", "discount", "value"]
    assert [line.split()[:2] for line in lines] == [["0", "FIRST"], *([str(t), "MID"] for t in range(1, 5)), ["5", "LAST"]]
    assert "0 .. 0.06667 .. 1" in call(run, "show", 4, "--observations")[1].replace("0.0666667", "0.06667")


def test_an_episode_that_spans_iterations_is_shown_whole(tmp_path, call):
    run = record(tmp_path, CATCH, steps=3, iterations=range(1, 12))
    rows = json.loads(call(run, "list", "--json")[1])
    for row in rows:
        table = list(csv.DictReader(io.StringIO(call(run, "csv", row["id"])[1])))
        assert len(table) == row["length"] + 1 and [line["t"] for line in table] == [str(t) for t in range(row["length"] + 1)]
        assert sum(float(line["reward"] or 0) for line in table) == row["return"] and table[-1]["step_type"] == "LAST"


def test_csv_has_every_column_of_the_episode_table(run, call, tmp_path):
    code, _, _ = call(run, "csv", "-o", tmp_path / "all.csv")
    table = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert code == 0 and {row["id"] for row in table} == {str(row["id"]) for row in json.loads(call(run, "list", "--json")[1])}
    with h5py.File(segments(run / "archive")[0]) as file:
        assert set(file["episodes"]) <= set(table[0])


def test_verify_says_what_it_verified(run, call):
    code, out, _ = call(run, "verify", "--jobs", 1)
    assert (code, out) == (0, "verified 30 whole episodes, 162 steps: all equal\n")


def test_verify_on_two_cores_finds_the_same(run, call, tmp_path):
    assert call(run, "verify", "--jobs", 2)[:2] == (0, "verified 30 whole episodes, 162 steps: all equal\n")
    planted = record(tmp_path, CATCH, lanes=(2, 1))
    flip(planted, 3, "reward", (2, 9))
    code, out, _ = call(planted, "verify", "--jobs", 2)
    assert code == 1 and out == call(planted, "verify", "--jobs", 1)[1]
    assert out.startswith("divergence: episode ") and ", reward: " in out and "lane 2, iteration 3, t = 9" in out


def test_verify_takes_episodes_or_a_sample(run, call):
    assert call(run, "verify", "--episodes", 4, 7)[1] == "verified 2 whole episodes, 10 steps: all equal\n"
    for sample, number in ((1, 1), (7, 7), (0.5, 15), (1000, 30)):
        assert call(run, "verify", "--sample", sample, "--jobs", 1)[1].startswith(f"verified {number} whole episodes")


@pytest.mark.atari
def test_verify_counts_what_it_cannot_verify(tmp_path, call):
    run = record(tmp_path, {**MACHADO, "reseed_every": 3}, iterations=range(1, 9), segment_iterations=1)
    segments(run / "archive")[1].unlink()
    code, out, _ = call(run, "verify", "--jobs", 1)
    assert code == 0 and "not verifiable: " in out and "no seed point since the missing iterations 2 to 2" in out
    lost = next(iter(survey(run / "archive").unplayable_ids))
    assert "cannot be played again" in call(run, "video", lost, "-o", tmp_path / "a.gif")[2] + call(run, "verify", "--episodes", lost)[2]
    for path in segments(run / "archive")[:1] + segments(run / "archive")[2:]:
        path.unlink()
    assert call(run, "verify")[0] == 2


def test_verify_tells_of_other_versions(tmp_path, call):
    run = record(tmp_path, CATCH)
    for path in segments(run / "archive"):
        with h5py.File(path, "r+") as file:
            versions = {"numpy": np.__version__, "ale-py": "0.1", "torch": "0.1"}
            file.attrs["header"] = json.dumps(json.loads(file.attrs["header"]) | {"versions": versions})
    out = call(run, "verify", "--jobs", 1)[1]
    assert out.count("other versions") == 1 and "ale-py 0.1 made the archive, here it is" in out


def read_video(path: Path) -> list[np.ndarray]:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    return list(imageio.get_reader(path, format="FFMPEG").iter_data())


def test_a_film_has_a_picture_for_every_observation_and_curves_underneath(run, call, tmp_path):
    code, out, _ = call(run, "video", 4, "-o", tmp_path / "a.mp4", "--scale", 4, "--fps", 10)
    assert code == 0 and "6 pictures, 10 per second" in out and list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]
    frames = read_video(tmp_path / "a.mp4")
    assert len(frames) == 6 and frames[0].shape[0] > 6 * 16 * 4 and frames[0].shape[1] == 5 * 16 * 4
    assert any((a[: 6 * 16 * 4] != b[: 6 * 16 * 4]).any() for a, b in zip(frames, frames[1:]))
    assert (frames[0][6 * 16 * 4 :] != frames[3][6 * 16 * 4 :]).any()  # the cursor moves


def test_a_film_can_be_a_gif(run, call, tmp_path):
    image = pytest.importorskip("PIL.Image")
    assert call(run, "video", 4, "-o", tmp_path / "a.gif", "--fps", 10)[0] == 0
    with image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 6 and film.info["duration"] == 100


@pytest.mark.atari
def test_atari_is_filmed_at_full_resolution_in_colour(tmp_path, call):
    run = record(tmp_path, MACHADO, steps=48, iterations=range(1, 4))
    assert call(run, "video", 2, "-o", tmp_path / "a.mp4", "--scale", 2)[0] == 0  # the lane's second episode since its seed
    frame = read_video(tmp_path / "a.mp4")[10]
    assert frame.shape[0] > 420 and frame.shape[1] == 320
    red, _, blue = frame[200, 100].astype(int)
    assert red > blue + 30  # Pong's background is brown


def test_a_film_of_what_cannot_be_played_again_is_refused(tmp_path, call):
    run = record(tmp_path, CATCH)
    flip(run, 1, "reward", (0, 3))
    code, _, err = call(run, "video", 0, "-o", tmp_path / "a.gif")
    assert code == 1 and "played again, the episode is another from iteration 1, t = 3 on" in err and not list(tmp_path.glob("*.gif"))


def test_an_emulator_without_pictures_is_told(tmp_path, call):
    node = {"_target_": "mpirl.testing.CountingEmulator", "episode_length": 4}
    run = record(tmp_path, node)
    code, _, err = call(run, "video", 0, "-o", tmp_path / "a.gif")
    assert code == 2 and "CountingEmulator makes no pictures" in err


def test_statistics_are_drawn(run, call, tmp_path):
    code, out, _ = call(run, "stats", "-o", tmp_path / "a.png")
    assert code == 0 and "30 episodes" in out and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_running_mean_begins_with_what_there_is():
    assert running_mean(np.array([2.0, 4.0, 6.0, 8.0]), 2).tolist() == [2, 3, 5, 7]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{tmp}/none", "list"], "no run at"),
        (["{tmp}", "list"], "no archive in"),
        (["{run}"], "the following arguments are required: COMMAND"),
        (["{run}", "play"], "invalid choice: 'play'"),
        (["{run}", "show", "999"], "ids close to it are 27, 28, 29; all are from 0 to 29"),
        (["{run}", "list", "--where", "retrun>3"], "did you mean 'return'?"),
        (["{run}", "list", "--where", "return>much"], "'much' is none"),
        (["{run}", "list", "--where", "return"], "write a column, a comparison"),
        (["{run}", "verify", "--episodes", "4000"], "no episode 4000"),
        (["{run}", "verify", "--episodes", "4", "--sample", "3"], "contradict"),
        (["{run}", "verify", "--sample", "2.5"], "--sample"),
        (["{run}", "verify", "--jobs", "0"], "--jobs"),
        (["{run}", "video", "4", "-o", "{tmp}/a.avi"], "ends in .mp4 or .gif"),
        (["{run}", "video", "4", "-o", "{tmp}/no/a.gif"], "no folder"),
        (["{run}", "video", "4", "-o", "{tmp}/a.gif", "--fps", "0"], "--fps"),
        (["{run}", "stats", "-o", "{tmp}/a.jpg"], "ends in .png"),
        (["{run}", "csv", "-o", "{tmp}/there.csv"], "--overwrite"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, call, tmp_path, arguments, words):
    (tmp_path / "there.csv").write_text("")
    code, out, err = call(*(argument.format(run=run, tmp=tmp_path) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("mpirl: ") and words in err


@pytest.mark.parametrize(
    "module, arguments, extra",
    [("matplotlib", ["stats", "-o", "a.png"], "plot"), ("imageio", ["video", "4", "-o", "a.mp4"], "video"), ("PIL.Image", ["video", "4", "-o", "a.gif"], "video")],
)
def test_a_missing_package_names_its_extra(run, call, tmp_path, monkeypatch, module, arguments, extra):
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    code, _, err = call(run, *arguments)
    assert code == 2 and f"pip install 'mpirl[{extra}]'" in err and not list(tmp_path.iterdir())


def test_an_existing_file_is_replaced_only_when_told(run, call, tmp_path):
    (tmp_path / "a.csv").write_text("mine")
    assert call(run, "csv", "-o", tmp_path / "a.csv", "--overwrite")[0] == 0
    assert (tmp_path / "a.csv").read_text().startswith("id,lane")


def test_it_needs_no_torch(run):
    program = "import sys\nfrom mpirl.replay import main\ncode = main(sys.argv[1:])\nsys.exit(code or 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, str(run), "verify", "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_reader_that_stops_reading_is_no_error(run):
    command = f"{sys.executable} -m mpirl.replay {run} list | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_progress_is_a_bar_or_lines(capsys, monkeypatch):
    monkeypatch.setattr("mpirl.progress.BAR_EVERY", 0)
    bar = Progress(10, "steps", live=True)
    bar.add(5)
    assert " 50%  5 of 10 steps" in capsys.readouterr().err
    lines = Progress(10, "steps", live=False)
    lines.add(5)
    lines.close()
    assert capsys.readouterr().err == ""  # ten seconds have not passed
