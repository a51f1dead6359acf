"""The segment format, version 2: names, attributes, chunks and filters. docs/archive.md describes it for readers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import NO_SEED, Field, Layout

FORMAT = "mpirl.archive"
FORMAT_VERSION = 2

OWN_NAMES = ("iteration", "learner_version", "episodes")  # of a segment; no field may have them

EPISODE_COLUMNS: dict[str, str] = {
    "id": "int64",
    "lane": "int64",
    "rank": "int64",
    "host": "str",
    "seed": "int64",
    "length": "int64",
    "return": "float64",
    "reason": "str",
    "start_iteration": "int64",
    "start_step": "int64",
    "end_iteration": "int64",
    "end_step": "int64",
    "task": "str",
    "settings": "str",
    "first_version": "int64",
    "last_version": "int64",
}
EPISODE_DEFAULTS: dict[str, Any] = {
    "host": "",
    "seed": NO_SEED,
    "start_iteration": -1,
    "start_step": -1,
    "task": "",
    "settings": "{}",
    "first_version": -1,
    "last_version": -1,
}
"""Of what a row may lack; the last four, all segments of version 1 lack."""

CONTENTS = ("all", "actions")
REPLAYED = ("step_type", "action", "reward", "discount", "episode", "seed", "version", "collected")
"""The fields that suffice to play an archive again: those that content="actions" has."""

FRAMES_PER_CHUNK = 16
LARGE_FRAME = 1024  # bytes; smaller ones share a chunk with all lanes
LARGEST_CHUNK = 1 << 20  # bytes; HDF5 decompresses a larger one anew at every partial read


def specs_to_json(specs: Specs) -> str:
    """Specs as JSON text, from which `specs_from_json` makes equal specs."""
    return json.dumps(
        {
            "observation": _specs_to_plain(specs.observation),
            "action": _spec_to_plain(specs.action),
            "extras": _specs_to_plain(specs.extras),
        }
    )


def specs_from_json(text: str) -> Specs:
    """What `specs_to_json` was given."""
    plain = json.loads(text)
    return Specs(_specs_from_plain(plain["observation"]), _spec_from_plain(plain["action"]), _specs_from_plain(plain["extras"]))


def layout_to_attributes(layout: Layout) -> dict[str, Any]:
    """The root attributes from which `layout_from_attributes` makes an equal layout."""
    return {
        "steps": layout.steps,
        "context": layout.context,
        "core": layout.core,
        "extras": json.dumps(_specs_to_plain(layout.extras)),
        "specs": specs_to_json(layout.specs),
    }


def layout_from_attributes(attributes: Mapping[str, Any]) -> Layout:
    """What `layout_to_attributes` was given."""
    return Layout(
        specs=specs_from_json(attributes["specs"]),
        steps=int(attributes["steps"]),
        context=int(attributes["context"]),
        core=int(attributes["core"]),
        extras=_specs_from_plain(json.loads(attributes["extras"])),
    )


def stored_table(layout: Layout, content: str) -> dict[str, Field]:
    """The field table of what an archive with this content stores. Raises UserError for a content that there is not."""
    check_content(content)
    return {name: entry for name, entry in layout.table().items() if content == "all" or name in REPLAYED}


def check_content(content: str) -> None:
    if content not in CONTENTS:
        raise UserError(f"archive.content={content!r} is unknown: choose {' or '.join(CONTENTS)}")


def table_to_json(table: Mapping[str, Field]) -> str:
    """The attribute from which `table_from_attributes` makes an equal table."""
    return json.dumps({name: {"shape": list(entry.shape), "dtype": entry.dtype} for name, entry in table.items()})


def table_from_attributes(attributes: Mapping[str, Any]) -> dict[str, Field]:
    """The field table of what the segment stores, as it was when it was written."""
    return {name: Field(tuple(entry["shape"]), entry["dtype"]) for name, entry in json.loads(attributes["table"]).items()}


def episode_row(row: Mapping[str, Any], of_lane: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A row of the episode table with every column; `of_lane` and the defaults stand in for what is missing or None."""
    known = {name: value for name, value in row.items() if value is not None}
    full = {**EPISODE_DEFAULTS, **(of_lane or {}), **known}
    assert full.keys() == EPISODE_COLUMNS.keys(), f"episode row {dict(row)}: the columns are {list(EPISODE_COLUMNS)}"
    return full


def players(header: Mapping[str, Any]) -> dict[int, dict[str, str]]:
    """What the episode table says of each lane: its host, and as JSON text the emulator's settings that differ there."""
    changes, players = header.get("rank_emulator") or (), {}
    for lane, host in enumerate(header.get("lane_host", ())):
        players[lane] = {"host": host}
    for lane, rank in enumerate(header.get("lane_rank", ())):
        settings = changes[rank] if rank < len(changes) else {}
        players.setdefault(lane, {})["settings"] = json.dumps(settings, sort_keys=True)
    return players


def check_names(layout: Layout) -> None:
    for name in layout.table():
        if name in OWN_NAMES:
            raise UserError(f"the archive has its own {name!r}: rename that extra of the emulator or algorithm")


def chunk_shape(num_lanes: int, entry: Field) -> tuple[int, ...]:
    """The chunk of a dataset [I, N, ...]: up to 16 large frames of one lane, or one iteration of a small field."""
    frame = Field(entry.shape[1:], entry.dtype)
    if not entry.shape or frame.nbytes < LARGE_FRAME:
        return (1, *(max(1, size) for size in (num_lanes, *entry.shape)))
    most = min(FRAMES_PER_CHUNK, max(1, LARGEST_CHUNK // frame.nbytes))
    num_chunks = math.ceil(entry.shape[0] / most)
    return (1, 1, math.ceil(entry.shape[0] / num_chunks), *frame.shape)  # equal chunks, so that the last one is not padding


def filters(compression: str, level: int) -> dict[str, Any]:
    """Arguments of h5py's create_dataset for `archive.compression` and `archive.level`."""
    if compression == "none":
        return {}
    if compression == "gzip":
        _check_level(compression, level, 0, 9)
        return {"compression": "gzip", "compression_opts": level}
    if compression == "zstd":
        _check_level(compression, level, 1, 22)
        return dict(load_zstd().Zstd(clevel=level))
    raise UserError(f"archive compression {compression!r} is unknown: choose gzip, zstd or none")


def load_zstd() -> Any:
    """The module hdf5plugin; importing it is what teaches h5py zstd."""
    try:
        import hdf5plugin
    except ImportError as error:
        raise UserError("archives compressed with zstd need the package hdf5plugin: pip install mpirl[zstd]") from error
    return hdf5plugin


def _check_level(compression: str, level: int, low: int, high: int) -> None:
    if not low <= level <= high:
        raise UserError(f"archive compression level {level}: {compression} takes {low} to {high}")


def _specs_to_plain(specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    return {name: _spec_to_plain(spec) for name, spec in specs.items()}


def _specs_from_plain(plain: Mapping[str, Any]) -> dict[str, ArraySpec]:
    return {name: _spec_from_plain(entry) for name, entry in plain.items()}


def _spec_to_plain(spec: ArraySpec) -> dict[str, Any]:
    return {
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "num_values": None if spec.num_values is None else int(spec.num_values),
        "low": _bound_to_plain(spec.low),
        "high": _bound_to_plain(spec.high),
    }


def _spec_from_plain(plain: Mapping[str, Any]) -> ArraySpec:
    low, high = _bound_from_plain(plain["low"]), _bound_from_plain(plain["high"])
    return ArraySpec(tuple(plain["shape"]), plain["dtype"], plain["num_values"], low, high)


def _bound_to_plain(bound: Any) -> Any:
    if isinstance(bound, (np.ndarray, np.generic)):
        bound = bound.tolist()
    if isinstance(bound, (tuple, list)):
        return [_bound_to_plain(part) for part in bound]
    if isinstance(bound, float) and not math.isfinite(bound):
        return str(bound)  # JSON has no infinity
    return bound


def _bound_from_plain(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_bound_from_plain(part) for part in plain)
    return float(plain) if isinstance(plain, str) else plain
