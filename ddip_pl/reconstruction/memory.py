"""Peak memory use."""

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: allocated on the GPU, or used by the process on a CPU (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # KiB on Linux
