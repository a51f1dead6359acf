"""The schema: keys and types of the config. Their meaning and defaults stand in configs/config.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class Placement:
    lanes_per_worker: int = 4
    lanes_per_host: Optional[int] = None
    lanes_total: Optional[int] = None
    lanes: Optional[list[int]] = None
    learner_threads: Optional[int] = None
    worker_threads: Optional[int] = None
    bind: str = "auto"
    learner: Optional[str] = None
    worker_gpus: Any = None  # a list, or "inherit"
    rules: Any = None  # a list of mappings; mpirl/rules.py checks them


@dataclass
class Evaluation:
    every: int = 0
    episodes: int = 10
    checkpoint: str = "latest"


@dataclass
class Checkpoint:
    every: int = 50
    keep: int = 3


@dataclass
class Archive:
    enabled: bool = True
    compression: str = "gzip"
    level: int = 1
    segment_iterations: int = 64
    segment_bytes: int = 2**26
    segment_seconds: float = 60
    content: str = "all"
    every: int = 1
    min_return_quantile: Optional[float] = None
    max_bytes: Optional[int] = None


@dataclass
class Offline:
    archive: Any = None  # a place, or a list of them
    epochs: int = 10
    validation: float = 0.1
    steps_per_iteration: int = 16384
    buffer_steps: int = 65536
    evaluate_every: int = 1


@dataclass
class Overlap:
    lag: int = 0


@dataclass
class Wire:
    gather: str = "direct"
    weights: str = "fp32"


@dataclass
class Console:
    every: int = 1


@dataclass
class Schema:
    """Types of the keys; their meaning stands in configs/config.yaml. Component nodes are checked by `settings_of`."""

    program: str = "train"
    name: str = ""
    trial: str = ""
    run_dir: str = ""
    resume: Any = False  # a bool, or "auto"
    overwrite: bool = False
    init_from: Optional[str] = None
    dry_run: bool = False
    seed: int = 1
    total_steps: Any = 1  # an int; 1e6 is fine too
    steps: int = 1
    max_time: Optional[float] = None
    transport: str = "auto"
    ranks: int = 2
    deadline: float = 300
    startup_deadline: float = 300
    allow_differences: Any = None  # a list of items, or "all"
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    placement: Placement = field(default_factory=Placement)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    schedule: Overlap = field(default_factory=Overlap)
    wire: Wire = field(default_factory=Wire)
    archive: Archive = field(default_factory=Archive)
    console: Console = field(default_factory=Console)
    offline: Offline = field(default_factory=Offline)
    online: Any = None
    emulator: Any = None
    model: Any = None
    algorithm: Any = None
    policy: Any = None
    choices: Any = None
