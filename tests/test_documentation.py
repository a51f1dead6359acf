"""README and docs stay true: links lead somewhere, and the commands' settings exist."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from mpirl.config import CONFIGS
from mpirl.schema import Schema

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
STARTED = re.compile(r"mpirl\.main|launch/slurm[\w-]*\.sbatch")  # what settings follow
LINES = [line for page in (ROOT / "README.md", ROOT / "docs/deployment.md") for line in page.read_text().splitlines()]
COMMANDS = sorted({line.split("#")[0].strip() for line in LINES if line.startswith("    ") and STARTED.search(line)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`((?:mpirl|configs|launch|hostfiles|tests|benchmarks|docs)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("command", COMMANDS)
def test_settings_of_the_commands_exist(command):
    assert COMMANDS
    words = shlex.split(STARTED.split(command, maxsplit=1)[1])
    settings = [word for word in words if re.match(r"[\w.]+=", word)]
    overrides = [re.sub(r"^archive=", "offline.archive=", setting) for setting in settings if not re.match(r"seed=.*,", setting)]
    ConfigStore.instance().store(name="mpirl_schema", node=Schema)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        compose("config", overrides)


def test_the_scripts_that_the_readme_names_can_be_started():
    for name in ("launch/quickstart", "launch/test", ".ci/run"):
        assert (ROOT / name).stat().st_mode & 0o111, name
