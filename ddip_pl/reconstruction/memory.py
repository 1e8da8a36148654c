"""Memory: how much a run has used, and how much there is."""

import sys
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")  # limits of a container or a batch job (Linux, version 2)


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: allocated on the GPU, or used by the process on a CPU (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # KiB on Linux


def available_memory(device: torch.device) -> int:
    """Memory that can still be used, in bytes: of the GPU, or of the machine and the limit set for this process."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *within_limits()])


def within_limits() -> list[int]:
    """What the memory limits of the process's control group and of the groups around it leave, in bytes."""
    try:
        group = Path("/proc/self/cgroup").read_text().split("::")[1].split("\n")[0].strip("/")
    except (OSError, IndexError):
        return []
    left = []
    for folder in (CGROUP / group, *(CGROUP / group).parents):
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(statistics["inactive_file"])  # files are dropped
            left.append(int((folder / "memory.max").read_text()) - used)
        except (OSError, ValueError, KeyError):  # "max" is no limit
            pass
        if folder == CGROUP:
            break
    return left
