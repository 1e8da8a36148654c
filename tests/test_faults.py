"""Fault injection: whole commands are killed at random points, then repeated; nothing may be lost or different.

`make test-faults KILLS=60` runs it. Every run is a fork of the test process, so that PyTorch is imported only once.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import CONFIGS, FIT, TASK
from safetensors.numpy import load_file

import ddip_pl.cli.reconstruct
import ddip_pl.cli.train  # noqa: F401 (imported here, not in every fork)
from ddip_pl import cli
from ddip_pl.callbacks import checkpoint_file
from ddip_pl.callbacks.checkpoint_file import origin
from ddip_pl.results.folder import read_table

KILLS = int(os.environ.get("KILLS", "60"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ADAPTATION = "--model.adaptation.init_args."
METHODS = {
    "dds": (),
    "d3ip": (f"{ADAPTATION}training.steps", "2"),
    "d3ip_mbir": (f"{ADAPTATION}training.steps", "2"),
    "d3ip_em": (f"{ADAPTATION}steps", "6", f"{ADAPTATION}crop", "16", f"{ADAPTATION}batch", "2"),
    "ddip": (f"{ADAPTATION}training.steps", "2"),
    "auto": (
        "--model.candidates", "{tv: {class_path: TotalVariation, init_args: {iterations: 4}}, "
        "dds: {class_path: Reconstruction, init_args: {prior: PRIOR, sampler: {steps: 5}}}}", "--model.slices", "2",
    ),
    "fit": (),
}  # fmt: skip
# A checkpoint after every step, so that many kills come while one is being written.
EVERY_STEP = (
    "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: "
    "{dirpath: fit/checkpoints, every_n_train_steps: 1, save_top_k: 1, save_last: true}}"
)
TRAINING = (
    "--data.epoch_size", "6", "--trainer.max_steps", "10",
    "--trainer.callbacks", "[{class_path: lightning.pytorch.callbacks.EMAWeightAveraging}, " + EVERY_STEP
    + ", {class_path: ddip_pl.callbacks.prior.ExportPrior, init_args: {path: prior.safetensors}}]",
)  # fmt: skip

pytestmark = pytest.mark.faults

tally: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def figures(pytestconfig: pytest.Config) -> Iterator[None]:
    """Print what the kills hit."""
    yield
    terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        terminal.write_line("")
        for name, count in sorted(tally.items()):
            terminal.write_line(f"{count:4} {name}")


def start(arguments: tuple[str, ...], before: Callable[[], None] = lambda: None) -> int:
    """Start `ddip-pl` in a fork, after a preparation there; returns its process."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        sys.stdout = sys.stderr = Path("log.txt").open("a", buffering=1)  # noqa: SIM115 (the process ends)
        sys.argv = ["ddip-pl", *arguments]
        before()
        code = cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def in_checkpoint(number: int, which: int) -> Callable[[], None]:
    """The process sends itself a signal while it writes this checkpoint, when half of it has reached the disk."""

    def prepare() -> None:
        fsync, written = os.fsync, 0

        def send(file: int) -> None:
            nonlocal written
            written += 1
            if written == which:
                os.ftruncate(file, os.fstat(file).st_size // 2 if number == signal.SIGKILL else os.fstat(file).st_size)
                os.kill(os.getpid(), number)
            fsync(file)

        checkpoint_file.os.fsync = send  # type: ignore[attr-defined]

    return prepare


def results(method: str) -> dict[str, np.ndarray]:
    """Everything that a run has computed, by name."""
    if method == "fit":
        return dict(load_file("fit/prior.safetensors"))
    [folder] = Path("out").iterdir()  # nothing else is left
    figures = [
        {name: value for name, value in row.items() if name not in ("seconds", "peak_memory_bytes")}
        for row in read_table(folder / "trajectory.csv")
    ]
    arrays = {f"{i} {name}": np.array(value) for i, row in enumerate(figures) for name, value in row.items()}
    for path in folder.rglob("*.safetensors"):
        arrays |= load_file(path)
    volume = nib.load(folder / "reconstruction.nii.gz")
    return arrays | {"volume": volume.get_fdata()}  # type: ignore[attr-defined]


def checkpoint() -> tuple[str, ...]:
    """The option that goes on from the newest checkpoint, if there is one."""
    places = ("out/last.ckpt", "fit/interrupted.ckpt", "fit/checkpoints/last.ckpt")
    found = next((path for path in places if Path(path).exists()), None)
    return () if found is None else ("--ckpt_path", found)


@pytest.fixture(scope="module")
def command(phantom_volume: Path, tiny_prior: Path) -> Callable[[str], tuple[str, ...]]:
    def arguments(method: str) -> tuple[str, ...]:
        if method == "fit":
            return (*FIT, *TRAINING)
        sampler = ("--model.sampler.steps", "5", "--model.sampler.start", "300", "--model.prior", str(tiny_prior))
        more = tuple(text.replace("PRIOR", str(tiny_prior)) for text in METHODS[method])
        return (
            "test", *TASK, "--config", f"{CONFIGS}/method/{method}.yaml", *(() if method == "auto" else sampler), *more,
            "--data.path", str(phantom_volume), "--data.slices", "4", "--data.size", "32", "--output", "out",
            "--checkpoint_every", "0",
        )  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def whole(
    command: Callable[[str], tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, np.ndarray], float]]:
    """What an uninterrupted run computes, and its seconds."""
    known: dict[str, tuple[dict[str, np.ndarray], float]] = {}

    def run(method: str) -> tuple[dict[str, np.ndarray], float]:
        if method not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp(method))
                wait(start(command(method)))  # fills the cache of system matrices
                shutil.rmtree("out", ignore_errors=True)
                shutil.rmtree("fit", ignore_errors=True)
                clock = time.monotonic()
                assert wait(start(command(method))) == 0, Path("log.txt").read_text()
                known[method] = results(method), time.monotonic() - clock
        return known[method]

    return run


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_run_goes_on_bit_for_bit(kill, command, whole, tmp_path, monkeypatch):
    """Killed once or twice, at a random time or while a checkpoint is being written, then repeated to the end."""
    method = [*METHODS][kill % len(METHODS)]
    expected, seconds = whole(method)
    monkeypatch.chdir(tmp_path)
    draw = random.Random(kill)
    number = SIGNALS[kill // len(METHODS) % len(SIGNALS)]
    for _ in range(draw.choice((1, 1, 2))):
        arguments = (*command(method), *checkpoint())
        Path("log.txt").unlink(missing_ok=True)
        if writing := draw.random() < 0.4:
            process = start(arguments, in_checkpoint(number, draw.randint(1, 4)))
        else:
            process = start(arguments)
            time.sleep(draw.uniform(0.3, 1.0) * seconds)
            os.kill(process, number)
        code = wait(process)
        assert code in (0, -number, 128 + number), Path("log.txt").read_text()
        done = "had finished" if code == 0 else "while a checkpoint was written" if writing else "at a random time"
        tally[f"{number.name} {done}"] += 1
        log = Path("log.txt").read_text()
        if code == 128 + number and "before the run had started" not in log:
            assert ("to go on: " in log) == bool(checkpoint()), "the run says how to go on, if it can"
        if code == 0:
            break
    for place in checkpoint()[1:]:
        assert origin(Path(place)), "a checkpoint under its own name is complete"
        tally["resumed from a checkpoint"] += 1
    assert wait(start((*command(method), *checkpoint()))) == 0, Path("log.txt").read_text()
    computed = results(method)
    assert computed.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(computed[name], expected[name])] == []
    tally[f"{method}: bit for bit"] += 1
