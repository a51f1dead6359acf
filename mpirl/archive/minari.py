"""Export to Minari: a dataset whose episodes are views of the segments (virtual datasets), or copies.

Minari itself is not needed. docs/archive.md says what the dataset holds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

import mpirl
from mpirl.archive.format import layout_to_attributes
from mpirl.archive.minari_metadata import (
    check_name,
    datasets_path,
    environment_json,
    observation_space_json,
    space_json,
)
from mpirl.archive.minari_views import LIBVER, views_file
from mpirl.archive.whole_episodes import WholeEpisodes, find_whole_episodes
from mpirl.errors import UserError
from mpirl.files import write_atomically, write_json

MINARI_VERSION = "0.5.4"  # of the dataset format
DATA, METADATA = "main_data.hdf5", "metadata.json"
BLOCK = 1 << 20  # bytes that are copied and compressed at once
FILTERS = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
SMALL = 4096  # bytes; smaller arrays are copied as they are
ROOM = 64 << 20  # bytes that a copy leaves free on the disk

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Exported:
    """What was made. nbytes: of the dataset's own files. notes: what its user should know, in sentences."""

    path: Path
    name: str
    episodes: int
    steps: int
    nbytes: int
    notes: tuple[str, ...]


def export_minari(
    archive: str | Path,
    name: str,
    root: str | Path | None = None,
    *,
    copy: bool = False,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress = lambda steps, total: None,
) -> Exported:
    """Make the Minari dataset `name` from the whole episodes in the closed segments of `archive`.

    name: name-vN or namespace/name-vN. root: where Minari looks for datasets (None: where it looks by default).
    copy: copy the arrays, so that the dataset needs no segments. overwrite: replace a dataset of this name.
    metadata: further entries of the dataset's metadata, such as author (a list) or code_permalink.
    progress: called with how many steps have just been written, and how many there are in all.
    Raises UserError for what cannot be a dataset, and when the disk is full.
    """
    check_name(name)
    target = Path(root or datasets_path()).resolve() / name
    _check_free(target, overwrite)
    found = find_whole_episodes(Path(archive).resolve())
    part = target.with_name(f".{target.name}.part")  # of the same depth, so that relative paths hold; Minari skips it
    with suppress(FileNotFoundError):
        shutil.rmtree(part)
    try:
        (part / "data").mkdir(parents=True)
        _write_data(found, part / "data", copy, progress)
        nbytes = (part / "data" / DATA).stat().st_size
        notes = tuple(_notes(found, target, copy))
        write_json(part / "data" / METADATA, {**_metadata(found, name, copy, nbytes, notes), **(metadata or {})})
        _put(part, target)
    except OSError as error:
        raise UserError(f"cannot write the dataset {target}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _make_namespaces(target, name)
    return Exported(target, name, len(found.episodes), found.steps, nbytes, notes)


def _check_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not (target / "data" / METADATA).exists():
        raise UserError(f"{target} exists and is no Minari dataset: choose another name")
    if not overwrite:
        raise UserError(f"the dataset {target} exists: choose another name, or replace it with --overwrite")


def _put(part: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(part, target)
    shutil.rmtree(old, ignore_errors=True)


def _make_namespaces(target: Path, name: str) -> None:
    """Minari lists a namespace if its folder says that it is one."""
    for folder in list(target.parents)[: name.count("/")]:
        if not (folder / "namespace_metadata.json").exists():
            write_json(folder / "namespace_metadata.json", {})


def _write_data(found: WholeEpisodes, folder: Path, copy: bool, progress: Progress) -> None:
    if not copy:
        write_atomically(folder / DATA, views_file(found, folder, progress))
        return
    views = folder / "views.hdf5"
    write_atomically(views, views_file(found, folder, lambda steps, total: None), durable=False)
    _copy_file(views, folder / DATA, lambda steps: progress(steps, found.steps))
    views.unlink()


def _copy_file(views: Path, target: Path, progress: Callable[[int], None]) -> None:
    with h5py.File(views) as source, h5py.File(target, "w", track_order=True, libver=LIBVER) as copy:
        for name, episode in source.items():
            _check_room(target, episode)
            group = copy.create_group(name)
            group.attrs.update(episode.attrs)
            episode.visititems(lambda path, item: _copy_item(group, path, item))
            copy.flush()
            progress(int(episode.attrs["total_steps"]))


def _copy_item(group: h5py.Group, path: str, item: h5py.Group | h5py.Dataset) -> None:
    if isinstance(item, h5py.Group):
        group.require_group(path)
    elif item.nbytes <= SMALL:
        group[path] = item[()]
    else:
        rows = min(len(item), max(1, BLOCK * len(item) // item.nbytes))
        to = group.create_dataset(path, item.shape, item.dtype, chunks=(rows, *item.shape[1:]), **FILTERS)
        for start in range(0, len(item), rows):
            to[start : start + rows] = item[start : start + rows]


def _check_room(target: Path, episode: h5py.Group) -> None:
    """Raise before the disk is full: libhdf5 would end the process."""
    sizes: list[int] = []
    episode.visititems(lambda path, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    free = shutil.disk_usage(target.parent).free
    if free < sum(sizes) + ROOM:
        raise UserError(f"{free:,} bytes free are too few to copy the dataset to {target.parent.parent}: make room there")


def _metadata(found: WholeEpisodes, name: str, copy: bool, nbytes: int, notes: Sequence[str]) -> dict[str, Any]:
    config, layout = found.header.get("config") or {}, found.layout
    environment = environment_json(config)
    algorithm = (config.get("algorithm") or {}).get("_target_", "").rpartition(".")[2]
    return {
        "dataset_id": name,
        "minari_version": MINARI_VERSION,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(observation_space_json(layout.specs.observation)),
        "action_space": json.dumps(space_json(layout.specs.action)),
        **({"env_spec": environment} if environment else {}),
        "total_episodes": len(found.episodes),
        "total_steps": found.steps,
        "dataset_size": round(nbytes / 1e6, 1),
        **({"algorithm_name": algorithm} if algorithm else {}),
        "description": " ".join([f"Episodes collected by mpirl {mpirl.__version__}.", *notes]),
        "mpirl": {
            "mpirl_version": mpirl.__version__,
            "layout": layout_to_attributes(layout),
            "archive": None if copy else str(found.archive),
            **{key: found.header.get(key) for key in ("config", "seed", "versions")},
        },
    }


def _notes(found: WholeEpisodes, target: Path, copy: bool) -> Iterator[str]:
    context = max(part.layout.context for part in found.parts)
    if context:
        yield f"Observations are single frames; the model saw stacks of {context + 1}, which a reader has to make."
    known = len(found.episodes) + found.left_out
    if found.left_out:
        yield f"Left out, as not all their steps are in the archive: {found.left_out:,} of {known:,} episodes."
    if copy:
        return
    yield (
        f"The arrays are views of the segments in {found.archive}: keep these, and move both together. Where a segment is "
        "gone, rewards read as nan. A dataset made with --copy stands alone."
    )
    if "zstd" in {part.compression for part in found.parts}:
        yield "The segments are compressed with zstd: readers need `import hdf5plugin` first (pip install hdf5plugin)."
