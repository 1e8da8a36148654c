"""Interrupted runs: signals, the checkpoints they leave, and which of them a run goes on from."""

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from helpers import CONFIGS, D3IP, FIT, TASK
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file

from ddip_pl import cli
from ddip_pl.callbacks import checkpoint_file
from ddip_pl.callbacks.checkpoint_file import CheckpointFile, origin
from ddip_pl.callbacks.fingerprint import TORCH, difference
from ddip_pl.callbacks.interruption import Interruption
from ddip_pl.errors import InputError
from ddip_pl.prior.checkpoint import load_prior, save_prior
from ddip_pl.prior.module import DiffusionPrior
from ddip_pl.reconstruction.loop import ReverseDiffusionLoop
from ddip_pl.results.claim import LOCK, claimed

CHECKPOINT = Path("out/last.ckpt")
TV = (*TASK, "--model", "TotalVariation", "--model.iterations", "50")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `ddip-pl` in this process; returns exit code and standard error. Its signal handlers do not outlast it."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ddip-pl", *arguments])
        capsys.readouterr()
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            code = cli.main()
        except SystemExit as error:
            code = error.code  # type: ignore[assignment]
        assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def given(phantom_volume: Path, tiny_prior: Path) -> tuple[str, ...]:
    """Three diffusion steps of four slices, into `out`."""
    return (
        "test", *D3IP, "--data.path", str(phantom_volume), "--data.slices", "4", "--model.prior", str(tiny_prior),
        "--model.sampler.steps", "3", "--output", "out",
    )  # fmt: skip


def at_first_step(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """The process sends itself these signals in the first step of the next run."""
    tell, waiting = ReverseDiffusionLoop._tell, [*numbers]

    def send(loop: ReverseDiffusionLoop, *arguments: object) -> None:
        while waiting:
            os.kill(os.getpid(), waiting.pop(0))
        tell(loop, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ReverseDiffusionLoop, "_tell", send)


def volume(folder: str) -> np.ndarray:
    return nib.load(Path(folder, "phantom", "reconstruction.nii.gz")).get_fdata()  # type: ignore[attr-defined]


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_printed_command_goes_on_bit_for_bit(run, given, monkeypatch, number):
    at_first_step(monkeypatch, number)
    code, error = run(*given)
    assert code == 128 + number
    line = error.splitlines()[-1]
    start = f"ended by {number.name}; to go on: "
    assert line.startswith(start)
    assert [path.name for path in Path("out").iterdir()] == ["last.ckpt"]
    program, *arguments = shlex.split(line.removeprefix(start))
    assert program == "ddip-pl"
    assert run(*arguments) == (0, "")
    assert [path.name for path in Path("out").iterdir()] == ["phantom"]
    if number == signal.SIGTERM:
        assert run(*given, "--output", "whole") == (0, "")
        assert np.array_equal(volume("out"), volume("whole"))


def test_of_several_volumes_the_interrupted_one_goes_on(run, phantom_volume, tiny_prior, monkeypatch):
    """The finished volume is skipped; the others equal those of an uninterrupted run, bit for bit."""
    for name in "abc":
        shutil.copy(phantom_volume, f"{name}.nii.gz")
        size = ("--data.slices", "4", "--data.size", "32", "--seed_everything", str(ord(name)))
        assert run("simulate", *TASK, "--data.path", f"{name}.nii.gz", *size, "--output", f"{name}.h5") == (0, "")
    measured = ("--data", "MeasuredDataModule", "--data.path", "?.h5", "--model.prior", str(tiny_prior))
    given = (
        "predict",
        "--config",
        f"{CONFIGS}/method/dds.yaml",
        *measured,
        "--model.sampler.steps",
        "3",
        "--output",
        "out",
    )
    tell, seen = ReverseDiffusionLoop._tell, []

    def interrupt_b(loop: ReverseDiffusionLoop, *arguments: object) -> None:
        seen.append((loop._current[1], loop.step))  # type: ignore[index]
        if seen[-1] == ("b", 2) and len(seen) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        tell(loop, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ReverseDiffusionLoop, "_tell", interrupt_b)
    code, error = run(*given)
    assert code == 128 + signal.SIGTERM
    seen.clear()
    _, *arguments = shlex.split(error.splitlines()[-1].split("to go on: ")[1])
    assert run(*arguments) == (0, "")
    assert seen == [("b", 3), ("c", 1), ("c", 2), ("c", 3)]
    assert run(*given, "--output", "whole") == (0, "")
    for name in "abc":
        images = [nib.load(Path(folder, name, "reconstruction.nii.gz")).get_fdata() for folder in ("out", "whole")]  # type: ignore[attr-defined]
        assert np.array_equal(*images)


def test_a_method_that_cannot_resume_stops_too(run, phantom_volume, monkeypatch):
    at_first_step(monkeypatch, signal.SIGUSR1)
    code, error = run("test", *TV, "--data.path", str(phantom_volume), "--data.size", "32", "--output", "out")
    assert code == 128 + signal.SIGUSR1
    assert error.endswith("ended by SIGUSR1; there is no checkpoint to go on from\n")
    assert not Path("out").exists()


def test_a_second_signal_ends_the_run_at_once(run, given, monkeypatch):
    at_first_step(monkeypatch, signal.SIGINT, signal.SIGINT)
    assert run(*given)[0] == 128 + signal.SIGINT
    assert not Path("out").exists()


def test_training_saves_at_a_signal_and_goes_on_bit_for_bit(run, monkeypatch):
    step = DiffusionPrior.training_step
    fit = (*FIT, "--data.epoch_size", "6", "--trainer.max_steps", "4")

    def send(module: DiffusionPrior, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if module.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(module, x, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionPrior, "training_step", send)
        code, error = run(*fit)
    assert code == 128 + signal.SIGTERM
    assert [path.name for path in Path("fit").iterdir()] == ["interrupted.ckpt"]
    _, *arguments = shlex.split(error.splitlines()[-1].partition("to go on: ")[2])
    assert run(*arguments, "--model.learning_rate", "0.1")[0] == 2
    assert run(*arguments)[0] == 0
    assert sorted(path.name for path in Path("fit").iterdir()) == ["checkpoints", "prior.safetensors"]
    assert run(*fit, "--trainer.default_root_dir", "whole")[0] == 0
    resumed, whole = (load_file(f"{name}/prior.safetensors") for name in ("fit", "whole"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_training_saves_when_a_data_worker_dies_and_goes_on(run, monkeypatch):
    step = DiffusionPrior.training_step
    fit = (*FIT, "--data.epoch_size", "40", "--trainer.max_steps", "12")

    def kill(module: DiffusionPrior, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        children = psutil.Process().children(recursive=True) if module.global_step == 1 else ()
        for worker in (child for child in children if not child.name().startswith("wandb")):
            worker.kill()
        return step(module, x, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionPrior, "training_step", kill)
        code, error = run(*fit, "--data.num_workers", "1")
    assert code == 2
    assert "a process that draws ellipses has died" in error
    _, *arguments = shlex.split(error.partition("to go on: ")[2].partition("\n")[0])
    assert run(*arguments, "--data.num_workers", "0")[0] == 0
    assert load_prior("fit/prior.safetensors")


# --- which checkpoint ---------------------------------------------------------------------------------------------


OTHER = {
    "learning rate": (
        ["--model.adaptation.init_args.training.learning_rate", "0.01"],
        "model.adaptation.training.learning_rate 0.001, now it is 0.01",
    ),
    "seed": (["--seed_everything", "1"], "seed_everything 0, now it is 1"),
    "estimator": (["--model.estimator", "DDNM"], "model.estimator ddip_pl.estimators.DDS, now it is ddip_pl.DDNM"),
    "method": (["--model", "BestOf", "--model.candidates", "{a: DirectInverse}"], "model ddip_pl.Reconstruction, now"),
    "prior": (["--model.prior", "other.safetensors"], "the contents of model.prior "),
    "volume": (["--data.path", "phantom.nii.gz"], "the contents of data.path "),
}


def test_only_a_checkpoint_of_the_same_run_is_accepted(run, given, tiny_prior, phantom_volume, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        at_first_step(patch, signal.SIGTERM)
        assert run(*given)[0] == 128 + signal.SIGTERM
    content = CHECKPOINT.read_bytes()
    again = (*given, "--ckpt_path", str(CHECKPOINT))
    other = load_prior(str(tiny_prior))
    next(other.parameters()).data.add_(1e-3)
    save_prior("other.safetensors", other, {})
    image = nib.load(phantom_volume)
    nib.save(nib.Nifti1Image(image.get_fdata() + 1, image.affine), "phantom.nii.gz")
    for arguments, what in OTHER.values():
        code, error = run(*again, *arguments)
        assert code == 2
        start = f"ddip-pl: error: ckpt_path {CHECKPOINT}: the checkpoint was saved with {what}"
        assert error.startswith(start)
        assert error.endswith("; give the settings of the checkpoint, or leave out --ckpt_path\n")
        assert error.count("\n") == 1
        assert CHECKPOINT.read_bytes() == content
    code, error = run("predict", *again[1:])
    assert (code, "with command test, now it is predict" in error) == (2, True)

    # A copy of the files elsewhere, other names and another folder are the same run; another PyTorch gives a warning.
    Path("copies").mkdir()
    for path in tiny_prior, phantom_volume:
        Path("copies", path.name).write_bytes(path.read_bytes())
    same = ("--data.path", f"copies/{phantom_volume.name}", "--model.prior", f"copies/{tiny_prior.name}")
    monkeypatch.setitem(checkpoint := torch.load(CHECKPOINT, weights_only=True), "fingerprint", origin(CHECKPOINT))
    checkpoint["fingerprint"][TORCH] = "1.0"
    torch.save(checkpoint, "old.ckpt")
    code, _ = run(*given, "--ckpt_path", "old.ckpt", *same, "--method", "mine", "--images_every", "3")
    assert code == 0
    assert "saved with PyTorch 1.0" in caplog.text


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(run, given):
    torch.save({"loops": {}, "state_dict": {}, "pytorch-lightning_version": "2.6.0"}, "some.ckpt")
    code, error = run(*given, "--ckpt_path", "some.ckpt")
    assert (code, "the checkpoint does not say what it is of" in error) == (2, True)


def test_the_first_difference_of_two_fingerprints():
    assert difference({"a": 1, "b": 2, TORCH: "2.6"}, {"a": 1, "b": 2, TORCH: "2.7"}) is None
    assert difference({"a": 1, "b": 2}, {"b": 3, "a": 1}) == "b 2, now it is 3"
    assert difference({"a": 1}, {"a": 1, "b": 3}) == "b None, now it is 3"


# --- writing checkpoints ------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, caplog):
    """The temporary folder of the system has no part in it, and what it replaces stays until it is complete."""
    file, path, older = CheckpointFile({"a": 1}), tmp_path / "last.ckpt", tmp_path / "older.ckpt"
    monkeypatch.setenv("TMPDIR", "/nowhere")
    file.save_checkpoint({"step": 1}, path)
    file.save_checkpoint({"step": 0}, older)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_file.os, "fsync", full)
        file.save_checkpoint({"step": 2}, path)
    assert "No space left on device" in caplog.text
    assert torch.load(path, weights_only=True) == {"step": 1, "fingerprint": {"a": 1}}
    assert sorted(tmp_path.iterdir()) == [path, older]
    file.remove_checkpoint(older)
    assert older.exists(), "the last good checkpoints stay while new ones fail"
    file.save_checkpoint({"step": 3}, path)
    file.remove_checkpoint(older)
    assert file.load_checkpoint(path)["step"] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_survives_checkpoints_that_cannot_be_written(run, given, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_file, "write", full)
    assert run(*given, "--checkpoint_every", "0")[0] == 0
    assert caplog.text.count("checkpoint out/last.ckpt was not saved") == 2
    assert Path("out/phantom/metrics.json").is_file()


def test_negative_time_between_checkpoints(run, given):
    code, error = run(*given, "--checkpoint_every", "-1")
    assert (code, error) == (
        2, "ddip-pl: error: DiffusionCheckpoint: every_seconds is -1.0; give a number from 0 to 1e+12\n"
    )  # fmt: skip


# --- one run per folder -------------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_run_until_its_process_ends(run, given):
    script = """
import sys, time
from pathlib import Path
from ddip_pl.results.claim import claimed
with claimed(Path("out")):
    print("claimed", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"claimed\n"
        code, error = run(*given)
        assert (code, error.count("\n")) == (2, 1)
        assert f"output folder out: another run (process {other.pid} on " in error
        other.kill()
    assert Path("out", LOCK).exists()
    assert run(*given)[0] == 0
    assert [path.name for path in Path("out").iterdir()] == ["phantom"]


def test_a_claim_leaves_no_folder_that_it_created(tmp_path):
    with claimed(tmp_path / "a" / "b"):
        with pytest.raises(InputError, match="another run"), claimed(tmp_path / "a" / "b"):
            pass
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


@pytest.mark.parametrize("place", ["ddip_pl.cli.parser.Parser.read", "ddip_pl.data.simulated.VolumeDataModule.setup"])
def test_ctrl_c_before_the_run_has_started(run, given, monkeypatch, place):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning would ignore Ctrl-C from here on
    assert run(*given) == (128 + signal.SIGINT, "ddip-pl: interrupted before the run had started\n")


def test_lightnings_own_way_of_ending_at_sigterm_is_no_success(tmp_path):
    """It ends trainings on several devices."""
    ended = SIGTERMException()
    Interruption(tmp_path / "last.ckpt", "").on_exception(None, None, ended)
    assert ended.code == 128 + signal.SIGTERM
