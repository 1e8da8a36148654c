"""`ddip-pl demo`: what adaptation does for a prior that has never seen anything like a brain, beside other methods."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
from lightning import seed_everything
from rich.console import Console
from rich.table import Table

from ddip_pl.cli.usage import parser
from ddip_pl.data.simulated import SIZE, VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.evaluation.pictures import compare
from ddip_pl.methods.reconstruct import reconstruct
from ddip_pl.methods.shipped import load_method
from ddip_pl.physics.ct import ParallelBeamCT
from ddip_pl.report.page import Case, write_page
from ddip_pl.results.result import Result

ANGLES, SIGMA_Y = 30, 2e-4
PRIOR = "ellipses_128_published"  # to adapt
TV, BEFORE, AFTER, BEST = "TV", "DDS, published prior", "D3IP-EM, published prior", "DDS, wide prior"


def save_template(path: Path) -> None:
    """Save the MNI152 T1 brain template that comes with nilearn as a NIfTI file.

    Raises:
        InputError: nilearn is missing, or the file cannot be written.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise InputError("the demo needs a volume from nilearn; pip install 'ddip-pl[demo]'") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(load_mni152_template(resolution=1), path)  # type: ignore[attr-defined]
    except OSError as error:
        raise InputError(f"output folder {path.parent}: cannot be written ({error.strerror})") from error


def main(arguments: Sequence[str]) -> None:
    """Run the demo, print a table, and write a picture and a report."""
    options = parser("demo").parse_args(arguments)
    if options.slices < 1:
        raise InputError(f"--slices is {options.slices}; give at least 1")

    volume = options.output / "mni152_t1.nii.gz"
    save_template(volume)
    sampling, published = {"sampler.steps": options.steps}, {"prior": PRIOR}
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        TV: ("admm_tv", {"strength": 0.1}),  # best of 0.01, 0.03 and 0.1 on another brain
        BEFORE: ("dds", sampling | published),
        AFTER: ("d3ip_em", sampling | published),
        BEST: ("dds", sampling),
    }
    size = load_method("dds", **published).image_size or SIZE
    seed_everything(0, verbose=False)
    data = VolumeDataModule(str(volume), partial(ParallelBeamCT, angles=ANGLES), SIGMA_Y, slices=options.slices)
    measurement, frame = data.simulate(size)
    y, operator, reference = measurement.y, measurement.operator, measurement.reference
    console, results = Console(), {}
    for name, (method, changes) in methods.items():
        console.print(name)
        results[name] = reconstruct(y, operator, SIGMA_Y, method, reference=reference, frame=frame, **changes)
        place = options.output / name.lower().replace(", ", "_").replace(" ", "_")
        results[name].save(place / frame.name, task="demo", method=name)
    report(results, options.output, console)


def report(results: dict[str, Result], folder: Path, console: Console) -> None:
    """Table, picture and report of all methods, FBP first."""
    results = {"FBP": next(iter(results.values())).direct} | results
    metrics = {name: result.metrics() for name, result in results.items()}
    frame, reference = results["FBP"].frame, results["FBP"].reference
    assert reference is not None
    table = Table(title=f"{frame.name}, {len(reference)} slices, {ANGLES} projections")
    for heading in ("method", "PSNR (dB)", "SSIM", "seconds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, result in results.items():
        seconds = f"{result.seconds:.0f}" if result.trajectory else ""
        table.add_row(name, f"{metrics[name]['psnr']:.2f}", f"{metrics[name]['ssim']:.3f}", seconds)
    console.print(table)
    path = folder / "demo.png"
    compare({name: result.volume for name, result in results.items()}, reference, metrics, frame.affine, path)
    shown = [results["FBP"].shown("FBP")]
    shown += [result.shown(name, result.facts()) for name, result in results.items() if name != "FBP"]
    case = Case("demo", frame.name, shown, frame.nifti(reference))
    write_page(folder / "report.html", f"A brain from {ANGLES} X-ray projections", [case])
    console.print(f"Picture: {path}; interactive report: {folder / 'report.html'}")
    gain = metrics[AFTER]["psnr"] - metrics[BEFORE]["psnr"]
    ahead = metrics[BEST]["psnr"] - metrics[TV]["psnr"]
    console.print(f"DDS with the wide prior: {ahead:+.2f} dB against total variation.")
    console.print(f"Adaptation of the published prior to the scan: {gain:+.2f} dB.")
