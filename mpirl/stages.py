"""The runs that a config asks for, one after the other, and which of them are done."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpirl.errors import UserError
from mpirl.rundir import COMPLETED, CONFIG

AUTO = "auto"
Config = dict[str, Any]


def whether_to_resume(resume: Any, run_dir: Path) -> bool | str:
    """The setting `resume`; "auto" becomes False where there is no run yet."""
    if resume not in (True, False, AUTO):
        raise UserError(f"resume={resume!r}: choose true, false or auto")
    return False if resume == AUTO and not (run_dir / CONFIG).is_file() else resume


def is_done(config: Config) -> bool:
    """Whether resume=auto has nothing to do: the run did all its steps."""
    marker = Path(config["run_dir"]) / COMPLETED
    steps = re.search(r"(\d+) steps", marker.read_text()) if marker.is_file() else None
    enough = steps is not None and int(steps[1]) >= config["total_steps"]  # what offline training takes, its archive tells
    done = config["resume"] == AUTO and config["program"] == "train" and enough
    if done:
        print(f"{config['run_dir']} is complete ({marker.read_text().strip()}): nothing to do", flush=True)
    return done


def stages(config: Config) -> list[Config]:
    """The configs of the runs that a config takes: offline_to_online is an offline run beside run_dir, and one in it that
    begins with the weights of the first."""
    if config["program"] != "offline_to_online":
        return [config]
    before = f"{config['run_dir']}-offline"
    online = config["online"] or config["algorithm"]
    first = {**config, "program": "offline", "run_dir": before}
    second = {**config, "program": "train", "init_from": before, "algorithm": online}
    second["offline"] = {**config["offline"], "archive": None}
    for stage in (first, second):
        is_there = (Path(stage["run_dir"]) / CONFIG).is_file()
        stage["resume"] = AUTO if whether_to_resume(config["resume"], Path(stage["run_dir"])) and is_there else False
    return [first, second]


def run_in_turn(configs: Sequence[Config], run: Callable[[Config], int]) -> int:
    """Run what is not done yet, each after the one before is complete; the exit code."""
    for config in configs:
        code = 0 if is_done(config) else run(config)
        if code or not (Path(config["run_dir"]) / COMPLETED).is_file():
            return code
    return 0
