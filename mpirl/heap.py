"""A heap that does not grow: programs run without glibc's cache of small chunks."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

TUNABLES = "GLIBC_TUNABLES"
NO_TCACHE = "glibc.malloc.tcache_count=0"


def restart_without_tcache() -> None:
    """Start this program anew without glibc's cache of small chunks, unless it runs so already. Call it before anything else.

    Torch's tensors lie at multiples of 64 bytes: malloc cuts a few bytes off in front of them and behind, and that cache keeps
    them for small objects to lie in. When the tensor is freed, the hole is too small for the next one of its size, and the heap
    grows: a worker's by up to 40 MB a second, in pages that have to be made, which took 3 to 5 % of the time of training. Nothing
    but the environment that a program starts with switches the cache off; what this one starts in turn does not inherit it.
    """
    wanted = without_tcache(os.environ)
    if wanted is not None and sys.executable:
        os.environ[TUNABLES] = wanted
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        except OSError:  # then it runs as it is
            pass
    given = os.environ[TUNABLES].removesuffix(NO_TCACHE).removesuffix(":") if TUNABLES in os.environ else ""
    if given:
        os.environ[TUNABLES] = given
    else:
        os.environ.pop(TUNABLES, None)


def without_tcache(environ: Mapping[str, str]) -> str | None:
    """What GLIBC_TUNABLES should be; None to leave it: there is no glibc, or it says something about the cache."""
    given = environ.get(TUNABLES, "")
    if "glibc.malloc.tcache_count" in given or not has_glibc():
        return None
    return f"{given}:{NO_TCACHE}" if given else NO_TCACHE


def has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # another system's C library has no such name
        return False
