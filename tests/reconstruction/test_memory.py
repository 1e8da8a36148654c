"""Peak memory in bytes, whichever unit the system counts in."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from ddip_pl.reconstruction.memory import peak_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(("platform", "expected"), [("linux", 1024 * 3_000_000), ("darwin", 3_000_000)])
def test_units_of_the_system(monkeypatch: pytest.MonkeyPatch, platform: str, expected: int) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3_000_000))
    assert peak_memory(CPU) == expected


def test_windows_has_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails
    assert peak_memory(CPU) == 0


def test_this_process_has_the_size_of_what_it_holds() -> None:
    before = peak_memory(CPU)
    held = torch.ones(25_000_000)
    assert peak_memory(CPU) >= held.nbytes
    assert before > 50e6
