"""The commands `minari` and `import`: archives to and from other people's tools."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from mpirl.archive.importing import import_episodes
from mpirl.archive.minari import export_minari
from mpirl.emulators.lanes import make_emulator
from mpirl.progress import Progress
from mpirl.replay_episodes import archive_of
from mpirl.specs import Specs


def add_to(commands: Any) -> None:
    """Add these commands to the program's."""
    export = commands.add_parser("minari", help="make a Minari dataset of the whole episodes")
    export.add_argument("name", metavar="NAME", help="name-vN or namespace/name-vN, as in mpirl/pong-v0")
    export.add_argument("--copy", action="store_true", help="copy the arrays, to give away; else they are views of the segments")
    export.add_argument("--overwrite", action="store_true", help="replace a dataset of this name")
    export.add_argument("--root", type=Path, metavar="FOLDER", help="default: $MINARI_DATASETS_PATH or ~/.minari/datasets")
    export.add_argument("--author", action="append", metavar="NAME", help="may be given several times")
    export.add_argument("--author-email", action="append", metavar="ADDRESS", help="may be given several times")
    export.add_argument("--code-permalink", metavar="URL", help="where the code that made the episodes is")
    export.set_defaults(run=run_export)
    importer = commands.add_parser("import", help="make RUN, a new archive, of a Minari dataset or a flat (D4RL) HDF5 file")
    importer.add_argument("source", metavar="SOURCE", help="a Minari dataset's name or folder, or an HDF5 file")
    importer.add_argument("--env", metavar="ID", help="the Gymnasium environment that it was made with, for exact bounds")
    importer.add_argument("--compression", choices=["gzip", "zstd", "none"], default="gzip")
    importer.set_defaults(run=run_import)


def run_export(options: argparse.Namespace) -> int:
    """The exit code."""
    words = {"author": options.author, "author_email": options.author_email, "code_permalink": options.code_permalink}
    with closing(LateProgress()) as progress:
        made = export_minari(
            archive_of(options.archive),
            options.name,
            options.root,
            copy=options.copy,
            overwrite=options.overwrite,
            metadata={key: value for key, value in words.items() if value},
            progress=progress.add,
        )
    kind = "copies" if options.copy else "views"
    print(f"{made.path}: episodes {made.episodes:,}, steps {made.steps:,}, as {kind}, {made.nbytes:,} bytes")
    for note in made.notes:
        print(note)
    where = f" with MINARI_DATASETS_PATH={options.root}" if options.root else ""
    print(f'minari.load_dataset("{made.name}") opens it{where}')
    return 0


def run_import(options: argparse.Namespace) -> int:
    """The exit code."""
    specs = specs_of(options.env) if options.env else None
    with closing(LateProgress()) as progress:
        made = import_episodes(
            options.source, options.archive, specs=specs, compression=options.compression, progress=progress.add
        )
    print(f"{made.path}: episodes {made.episodes:,}, steps {made.steps:,}")
    for reason, number in made.counts.items():
        print(f"{reason}: {number:,}")
    return 0


def specs_of(id: str) -> Specs:
    """The specs of a Gymnasium environment."""
    node = {"_target_": "mpirl.emulators.gymnasium.GymnasiumEmulator", "id": id}
    emulator = make_emulator({"emulator": node}, 1)
    emulator.close()
    return emulator.specs


class LateProgress:
    """A progress bar whose length comes with the first steps."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def add(self, steps: int, total: int) -> None:
        self._bar = self._bar or Progress(total, "steps")
        self._bar.add(steps)

    def close(self) -> None:
        if self._bar:
            self._bar.close()
