"""Memory in use."""

import resource

import torch


def peak_memory(device: torch.device) -> int:
    """Largest memory so far, in bytes: allocated on the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
