"""Files that the commands of mpirl.replay write: checked before the work, and whole or not there after it."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpirl.errors import UserError


def add_output(parser: argparse.ArgumentParser, metavar: str, required: bool) -> None:
    """The options that `check_output` reads."""
    parser.add_argument("-o", "--output", type=Path, metavar=metavar, required=required, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def check_output(options: argparse.Namespace, suffixes: Sequence[str]) -> None:
    """Raise UserError if the file that is to be written has another ending, is there already, or has no folder."""
    path: Path = options.output
    if path.suffix.lower() not in suffixes:
        raise UserError(f"--output {path}: write a name that ends in {' or '.join(suffixes)}")
    if path.is_dir() or path.exists() and not options.overwrite:
        raise UserError(f"--output {path} exists: choose another name, or add --overwrite to replace a file")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it first")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, with the same ending, that becomes `path` if nothing is raised; else it is removed."""
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
