"""Files that are whole or not there: written beside, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes | memoryview, durable: bool = True) -> None:
    """Make `path` hold `content`: a reader or a crash meets the old file or the new one, never a part.

    durable: also after a power failure, for the time of a sync. A process killed meanwhile leaves at most `path`.part.
    Raises OSError (a full disk, say), and then leaves the old file and no rest.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
        if durable:
            sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file that other programs read now and then; it need not outlive a power failure."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode(), durable=False)


def sync_folder(directory: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
