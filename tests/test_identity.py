"""Identities: ranks that differ are noticed and named, and only what changes results ends the run."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

import mpirl
from mpirl import identity
from mpirl.errors import UserError
from mpirl.identity import Identity, check_alike, config_hash, differences, module_hash, user_modules

HOSTS = ["gpu0", "cpu1", "cpu1", "cpu2", "cpu2"]
HERE = Identity(
    {
        "python": "3.11.7",
        "torch": "2.13.0+cu130",
        "numpy": "2.4.6",
        "mpi4py": "4.1.2",
        "h5py": "3.16.0",
        "gymnasium": "1.4.0",
        "ale-py": "0.12.1",
        "mpi": "Open MPI v5.0.11",
        "mpirl": "0.1.0",
        "code": "c0de",
        "config": "c0ff",
        "machine": "x86_64",
        "cpu": "fma avx2 avx512f",
        "glibc": "2.36",
        "my_game": "abcd",
    }
)


def world(*others, **everywhere):
    """Five ranks; others: (rank, {item: value}) that differ. everywhere: values of all ranks."""
    identities = [replace(HERE, values=HERE.values | everywhere) for _ in HOSTS]
    for rank, values in others:
        identities[rank] = replace(HERE, values=identities[rank].values | values)
    return identities


def refusal(identities, allowed=()):
    with pytest.raises(UserError) as caught:
        check_alike(identities, HOSTS, allowed)
    return str(caught.value)


def test_a_rank_tells_what_it_runs():
    here = Identity.here("Open MPI v5.0.11", config_hash({"seed": 1}), ["no_such_game"])
    values = here.as_dict()
    assert values["python"] == sys.version.split()[0] and values["mpirl"] == mpirl.__version__
    assert values["numpy"] and values["mpi"] == "Open MPI v5.0.11" and values["machine"]
    assert values["no_such_game"] is None
    assert pickle.loads(pickle.dumps(here)) == here
    assert set(HERE.values) - {"my_game"} == set(values) - {"no_such_game"}


def test_equal_ranks_pass_in_silence():
    assert check_alike(world(), HOSTS) == check_alike(world(), HOSTS, None) == []
    assert check_alike(world(**{"ale-py": None, "mpi": None}), HOSTS) == []


@pytest.mark.parametrize(
    "item, value",
    [
        ("torch", "2.12.0"),
        ("numpy", "2.4.5"),
        ("ale-py", "0.12.2"),
        ("gymnasium", "1.5.0"),
        ("python", "3.12.7"),
        ("mpi", "Open MPI v5.0.10"),
        ("mpi", "MPICH Version: 5.0.2"),
        ("code", "beef"),
        ("config", "beef"),
        ("my_game", "beef"),
        ("torch", None),
        ("ale-py", None),
        ("gymnasium", None),
        ("my_game", None),
    ],
)
def test_what_changes_results_is_an_error_unless_allowed(item, value):
    identities = world((3, {item: value}), (4, {item: value}))
    message = refusal(identities)
    assert f"{item}: {HERE.values[item]} on rank 0 of gpu0, {value or 'none'} on ranks 3, 4 on cpu2" in message
    assert f"allow_differences=[{item}]" in message
    for allowed in ([item], ["all"], item, "all"):
        (warning,) = check_alike(identities, HOSTS, allowed)
        assert f"{item}: " in warning and "(allowed)" in warning


@pytest.mark.parametrize(
    "item, value",
    [
        ("python", "3.11.9"),
        ("gymnasium", "1.4.1"),
        ("torch", "2.13.0+cpu"),
        ("torch", "2.13.0"),
        ("mpi4py", "4.1.1"),
        ("h5py", "3.15.0"),
        ("mpirl", "0.0.9"),
        ("machine", "aarch64"),
        ("cpu", "fma avx2"),
        ("cpu", None),
        ("glibc", "2.41"),
    ],
)
def test_what_does_no_harm_is_a_warning(item, value):
    (warning,) = check_alike(world((2, {item: value})), HOSTS)
    assert warning == f"ranks differ in {item}: {HERE.values[item]} on rank 0 of gpu0, {value or 'none'} on rank 2 on cpu1"


def test_workers_may_lack_what_only_rank_0_needs():
    assert check_alike(world(*[(rank, {"h5py": None}) for rank in range(1, 5)]), HOSTS) == []


def test_rank_0_may_lack_what_only_workers_need_and_they_must_agree_on_it():
    assert check_alike(world((0, {"ale-py": None})), HOSTS) == []
    message = refusal(world((0, {"ale-py": None}), (4, {"ale-py": "0.11.0"})))
    assert "ale-py: 0.12.1 on rank 1 of cpu1, 0.11.0 on rank 4 on cpu2" in message


def test_every_other_value_is_told_with_its_ranks_and_hosts():
    identities = world((1, {"torch": "2.12.0"}), (3, {"torch": "2.12.0"}), (4, {"torch": "2.11.0", "glibc": "2.41"}))
    found = {(difference.item, difference.value): difference for difference in differences(identities, HOSTS)}
    assert list(found) == [("torch", "2.12.0"), ("torch", "2.11.0"), ("glibc", "2.41")]
    first = found["torch", "2.12.0"]
    assert (first.expected, first.ranks, first.hosts) == ("2.13.0+cu130", (1, 3), ("cpu1", "cpu2"))
    assert [difference.changes_results for difference in found.values()] == [True, True, False]
    message = refusal(identities)
    assert "2.12.0 on rank 1 on cpu1, rank 3 on cpu2" in message and "install torch==2.13.0 on cpu1, cpu2" in message
    assert "allow_differences=[torch]" in message and "glibc" not in message


def test_what_is_not_allowed_stays_an_error():
    message = refusal(world((1, {"torch": "2.12.0", "code": "beef"})), ["torch"])
    assert "code: c0de on rank 0" in message and "torch" not in message
    assert "bring rank 0's mpirl to cpu1" in message


def test_unknown_items_are_named_with_the_closest():
    with pytest.raises(UserError, match=r"unknown item 'troch' \(did you mean 'torch'\?\)"):
        check_alike(world(), HOSTS, ["troch"])
    assert check_alike(world(), HOSTS, ["my_game", "all"]) == []


def test_the_order_of_keys_does_not_change_the_hash_of_a_config():
    config = {"a": 1, "placement": {3: "x", "cpu*": [1, None]}, "rate": 1e-3}
    assert config_hash(config) == config_hash(dict(reversed(config.items())))
    assert len({config_hash(other) for other in (config, {**config, "a": 2}, {**config, "a": "1"})}) == 3


def test_users_modules_are_found_in_targets_and_ids():
    config = {
        "emulator": {"_target_": "my_game.games.Pong", "parts": [{"_target_": "other.Part"}]},
        "model": {"_target_": "mpirl.models.mlp.Mlp"},
        "inner": {"_target_": "mpirl.emulators.gymnasium.GymnasiumEmulator", "id": "my_envs.small:Maze-v0"},
        "rest": {"id": "ALE/Pong-v5", "device": "cuda:0", "none": {"_target_": None, "id": None}, "bad": {"_target_": ".x"}},
    }
    assert user_modules(config) == ["my_envs", "my_game", "other"]


def test_a_users_module_is_hashed_with_its_helpers_and_not_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lone_game_file.py").write_text("raise RuntimeError('imported')")
    package = tmp_path / "my_game_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "helper.py").write_text("SPEED = 1")
    (package / ".#helper.py").symlink_to("nowhere")
    hashes = [module_hash("my_game_package"), module_hash("lone_game_file")]
    assert all(hashes) and module_hash("no_such_game") is None and module_hash("sys") is None
    (package / "helper.py").write_text("SPEED = 2")
    assert module_hash("my_game_package") != hashes[0] and module_hash("lone_game_file") == hashes[1]


def test_the_code_hash_sees_names_and_contents_and_not_the_place(tmp_path):
    def tree(name, files):
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return identity.files_hash([tmp_path / name])

    first = tree("first", {"a.py": "1", "sub/b.py": "2"})
    assert first == tree("second", {"a.py": "1", "sub/b.py": "2", "data.txt": "3"})
    assert len({first, tree("third", {"a.py": "2", "sub/b.py": "1"}), tree("fourth", {"a.py": "1", "sub/c.py": "2"})}) == 3


def test_the_instructions_that_matter_are_read(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 sse fma\nprocessor\t: 1\nflags\t\t: avx512f\n")
    assert identity.vector_instructions(str(tmp_path / "cpuinfo")) == "fma avx2"
    assert identity.vector_instructions(str(tmp_path / "missing")) is None


def test_no_heavy_library_is_loaded_to_tell_ones_identity():
    code = (
        "import sys; from mpirl.identity import Identity; Identity.here('', '');"
        "print({'torch', 'hydra', 'mpi4py', 'h5py', 'numpy', 'gymnasium', 'ale_py'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
