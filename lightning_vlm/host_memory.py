"""How much memory the machine has left for this process."""

import os
import re
from pathlib import Path


def available_memory() -> int:
    """The bytes that this process can still get from the machine, within the limit of its container."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    amounts = [_read_bytes("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", unit=1024) or pages]
    for most, used in CONTAINER_LIMITS:
        limit, usage = _read_bytes(most, r"(\d+)$"), _read_bytes(used, r"(\d+)$")
        if limit is not None and usage is not None:
            amounts.append(max(limit - usage, 0))
    return min(amounts)


CONTAINER_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files with the most memory that a container may use and what it uses now, of both versions of cgroups."""


def _read_bytes(file: str, pattern: str, unit: int = 1) -> int | None:
    try:
        found = re.search(pattern, Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * unit if found else None
