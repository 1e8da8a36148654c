"""Which of the volumes in a file to read: repetitions, contrasts, phases and sets of the same slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ddip_pl.errors import InputError
from ddip_pl.settings import NonNegativeInt, checked


@checked
@dataclass(frozen=True)
class Counters:
    """The counters that tell the volumes of a file apart, named as in ISMRMRD. None stands for every value.

    Args:
        contrast: echo, in multi-echo scans.
        phase: of a cycle, such as the heart's.
        repetition: in dynamic scans.
        set: any other difference, such as the flow encoding.

    Raises:
        InputError: a counter is negative.
    """

    contrast: NonNegativeInt | None = None
    phase: NonNegativeInt | None = None
    repetition: NonNegativeInt | None = None
    set: NonNegativeInt | None = None

    def __str__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return ", ".join(f"{name} {value}" for name, value in given.items()) or "any"

    def of(self, volumes: Sequence[Counters]) -> list[Counters]:
        """Those of the volumes in a file that have these values, with only the counters that tell them apart.

        Raises:
            InputError: there are none.
        """
        alike = {name for name in COUNTERS if len({getattr(volume, name) for volume in volumes}) == 1}
        short = [replace(volume, **dict.fromkeys(alike)) for volume in volumes]
        chosen = [name for volume, name in zip(volumes, short, strict=True) if self.covers(volume)]
        if not chosen:
            known = "; ".join(map(str, short[:8])) if len(short) > 1 else "a single volume"
            raise InputError(f"no volume with {self}; the file has {known}")
        return chosen

    def covers(self, volume: Counters) -> bool:
        """Whether a volume has these values."""
        return all(getattr(self, name) in (None, getattr(volume, name)) for name in COUNTERS)

    def name(self, scan: str) -> str:
        """Name of the volume, from the name of its scan."""
        given = (f"-{name}-{value}" for name, value in vars(self).items() if value is not None)
        return scan + "".join(given)


ANY = Counters()
COUNTERS = frozenset(field.name for field in fields(Counters))
