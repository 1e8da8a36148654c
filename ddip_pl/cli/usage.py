"""The text of `ddip-pl --help`."""

COMMANDS = {
    "test": "simulate a measurement of a volume, reconstruct it and compare the two",
    "predict": "reconstruct measured data, or a volume without comparison",
    "simulate": "write a simulated measurement of a volume to a file",
    "benchmark": "test many methods on many tasks and volumes, in one table",
    "compare": "print a table and draw curves of finished runs",
    "demo": "reconstruct a brain with FBP, DDS and D3IP, side by side",
    "fit": "train a prior on random ellipses",
    "validate": "compute the loss of a prior on held-out ellipses",
    "workspace": "create a Weights & Biases dashboard for a project's runs",
}
EXAMPLES = {
    "test": "--config configs/task/sv_ct.yaml --config configs/method/d3ip.yaml --data.path VOLUME.nii.gz",
    "predict": "--config configs/task/measured.yaml --config configs/method/d3ip.yaml --data.path SCAN.h5",
    "fit": "--config configs/prior/ellipses_128.yaml",
    "validate": "--config configs/prior/ellipses_128.yaml --ckpt_path LAST.ckpt",
}


def usage() -> str:
    """The overview of all commands."""
    commands = "\n".join(f"  {name:<11}{purpose}" for name, purpose in COMMANDS.items())
    examples = "\n".join(f"  ddip-pl {name} {EXAMPLES[name]}" for name in ("test", "predict", "fit"))
    return (
        "usage: ddip-pl COMMAND [options]\n\n"
        "Reconstruct 3D CT and MRI volumes with a diffusion prior trained on ellipses and adapted to each scan."
        f"\n\n{commands}\n\n{examples}\n\n"
        "ddip-pl COMMAND --help explains the options of a command; --debug prints the traceback of an error."
    )
