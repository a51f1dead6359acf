"""What stands on the command line before Hydra reads it: short spellings, and what an archive says that it leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpirl.archive.reader import Segment, segments
from mpirl.archive.survey import find_archives

OFFLINE = ("offline", "offline_to_online")


def spelled_out(arguments: Sequence[str], configs: Path) -> list[str]:
    """The arguments with archive=PATH as offline.archive=PATH, and with the emulator that this archive was made with.

    archive={...} sets the node of that name, as Hydra has it. configs: the folder of the emulators' configs.
    """
    arguments = [f"offline.{a}" if a.startswith("archive=") and not a.startswith("archive={") else a for a in arguments]
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if given.get("program") not in OFFLINE or "emulator" in given or "offline.archive" not in given:
        return arguments
    places = [place.strip(" '\"") for place in given["offline.archive"].strip("[]").split(",")]
    choice = (made_with(places).get("choices") or {}).get("emulator")
    return [f"emulator={choice}", *arguments] if (configs / "emulator" / f"{choice}.yaml").is_file() else arguments


def made_with(places: str | Sequence[str]) -> Mapping[str, Any]:
    """The config of the run that made the first of these archives; {} where it holds none (an imported one)."""
    with Segment(segments(find_archives(places)[0])[-1]) as segment:
        return segment.header.get("config") or {}
