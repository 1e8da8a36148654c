"""`ddip-pl simulate`: write a simulated measurement of a volume to a file that `predict` reads."""

from collections.abc import Sequence
from pathlib import Path

from lightning import seed_everything

from ddip_pl.cli.parser import Parser
from ddip_pl.data.simulated import SIZE, VolumeDataModule
from ddip_pl.scans.bart import SUFFIXES, write_bart
from ddip_pl.scans.hdf5 import write_measurement


def main(arguments: Sequence[str]) -> None:
    """Measure a volume and write the file.

    Raises:
        InputError: the volume or the settings cannot be used, or the file cannot be written.
    """
    parser = Parser.of("simulate")
    parser.add_argument("--task", default="task", help="Name of the task; ignored.")
    parser.add_argument(
        "--output", type=Path, required=True, help="File to write: HDF5 (.h5), or k-space for BART (.cfl)."
    )
    parser.add_choice(VolumeDataModule, "data", usual=VolumeDataModule)
    settings = parser.read(arguments)
    seed_everything(settings.seed_everything, verbose=False)
    data = parser.instantiate(settings).data
    measurement, frame = data.simulate(data.size or SIZE)
    write = write_bart if settings.output.suffix in SUFFIXES else write_measurement
    write(settings.output, measurement, frame)
    print(f"{frame.name}, {len(measurement)} slices; measurement in {settings.output}")
