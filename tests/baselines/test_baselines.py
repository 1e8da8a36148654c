"""Baselines: their results, against conditions that only the right solution fulfils, and when they stop."""

import logging
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddip_pl.baselines import Baseline, DeepImagePrior, DirectInverse, L1Wavelet, LocallyLowRank, TotalVariation
from ddip_pl.baselines.llr import shrink_singular_values
from ddip_pl.baselines.spinning import spinning_fista
from ddip_pl.baselines.tv import tv_reconstruction
from ddip_pl.baselines.wavelet import HAAR, Wavelet, across_slices
from ddip_pl.data.simulated import VolumeDataModule
from ddip_pl.errors import InputError
from ddip_pl.evaluation.metrics import summary
from ddip_pl.physics import LinearOperator, Measurement, ParallelBeamCT, simulate
from ddip_pl.prior.phantoms import RandomEllipses, phantoms
from ddip_pl.reconstruction.callback import ReconstructionCallback
from ddip_pl.reconstruction.step import Step
from ddip_pl.results.result import Result
from ddip_pl.solvers.fista import fista

SIGMA_Y = 1e-2


class Identity(LinearOperator):
    """Denoising."""

    def __init__(self, y: Tensor):
        super().__init__((len(y), *y.shape[2:]))
        self.channels = y.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()

    adjoint = pseudo_inverse = forward


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """Two phantoms of 32x32 pixels, few angles, noise."""
    x = phantoms(torch.from_numpy(RandomEllipses(1, 5, "uniform")[0]["ellipses"])[None], 32)
    x = torch.cat([x, x.flip(3)])
    operator = ParallelBeamCT((2, 32, 32), 12, cache_dir=tmp_path_factory.mktemp("cache"))
    return Measurement(simulate(x, operator, SIGMA_Y, torch.Generator().manual_seed(0)), operator, SIGMA_Y, x)


def denoising(y: Tensor, sigma_y: float = 0.1) -> Measurement:
    return Measurement(y, Identity(y), sigma_y)


def last(method: Baseline, measurement: Measurement) -> Tensor:
    torch.manual_seed(0)
    *_, step = method.iterate(measurement)
    return step.images["estimate"]


def psnr(x: Tensor, measurement: Measurement) -> float:
    assert measurement.reference is not None
    return summary(x, measurement.reference)["psnr"]


# --- direct -----------------------------------------------------------------------------------------------


def test_direct_inverse_is_the_operators(ct: Measurement) -> None:
    [step] = DirectInverse().iterate(ct)
    assert torch.equal(step.images["estimate"], ct.operator.pseudo_inverse(ct.y))


# --- total variation --------------------------------------------------------------------------------------


def test_total_variation_counts_in_units_of_the_noise(ct: Measurement) -> None:
    found = last(TotalVariation(0.3, 1e-3), ct)
    assert torch.equal(found, tv_reconstruction(ct, 0.3 * SIGMA_Y, 1e-3))
    assert psnr(found, ct) > psnr(ct.operator.pseudo_inverse(ct.y), ct) + 2


def test_it_is_said_whether_it_converged(ct: Measurement, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        steps = list(TotalVariation(0.3, tolerance=2e-3).iterate(ct))
        assert steps[-1].figures["change"] < 2e-3 <= min(step.figures["change"] for step in steps[:-1])
        assert not caplog.records
        steps = list(TotalVariation(0.3, tolerance=1e-9, iterations=3).iterate(ct))
    assert len(steps) == 3
    assert caplog.messages == [
        f"not converged after 3 iterations ({steps[-1][1]['change']:.1e}, tolerance 1e-09); raise model.iterations"
    ]


# --- wavelets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (64, 64)])
def test_wavelets_are_those_of_pywavelets(size: tuple[int, int]) -> None:
    """Level by level."""
    x = randn(2, 1, *size)
    wavelet, block = Wavelet(x), x.numpy()
    coefficients = wavelet.analyse(x).numpy()
    assert len(wavelet.levels) == {16: 1, 32: 2, 64: 3}[min(size)]
    for rows, columns in wavelet.levels:
        height, width = len(rows) // 2, len(columns) // 2
        block, (low_high, high_low, high_high) = pywt.dwt2(block, HAAR, "periodization")
        np.testing.assert_allclose(coefficients[..., height : 2 * height, :width], low_high, atol=1e-12)
        np.testing.assert_allclose(coefficients[..., :height, width : 2 * width], high_low, atol=1e-12)
        np.testing.assert_allclose(coefficients[..., height : 2 * height, width : 2 * width], high_high, atol=1e-12)
    np.testing.assert_allclose(coefficients[..., :height, :width], block, atol=1e-12)


@settings(max_examples=30)
@given(height=st.integers(1, 40), width=st.sampled_from([16, 24, 32, 48]), seed=st.integers(0, 99))
def test_wavelets_are_orthonormal(height: int, width: int, seed: int) -> None:
    x, other = randn(2, 1, height, width, seed=seed), randn(2, 1, height, width, seed=seed + 1)
    kept, wavelet = x.clone(), Wavelet(x)
    coefficients = wavelet.analyse(x)
    torch.testing.assert_close(wavelet.synthesise(coefficients), x)
    torch.testing.assert_close((coefficients * other).sum(), (x * wavelet.synthesise(other)).sum())
    assert torch.equal(x, kept)


def test_wavelets_do_not_see_constants() -> None:
    wavelet = Wavelet(torch.ones(1, 1, 64, 64))
    assert wavelet.coarsest == (8, 8)
    coefficients = wavelet.analyse(torch.ones(1, 1, 64, 64))[0, 0]
    torch.testing.assert_close(coefficients[:8, :8], torch.full((8, 8), 8.0))  # the norm stays the same
    assert torch.cat([coefficients[8:].flatten(), coefficients[:8, 8:].flatten()]).abs().max() < 1e-5


@settings(max_examples=30)
@given(slices=st.integers(1, 7), first=st.integers(0, 1), seed=st.integers(0, 99))
def test_pairs_of_slices(slices: int, first: int, seed: int) -> None:
    x, other = randn(slices, 2, 4, 4, seed=seed), randn(slices, 2, 4, 4, seed=seed + 1)
    kept, first = x.clone(), min(first, slices - 1)
    found, differences = across_slices(x, first)
    torch.testing.assert_close(across_slices(found, first)[0], x)
    torch.testing.assert_close((found * other).sum(), (x * across_slices(other, first)[0]).sum())
    same = across_slices(x[:1].expand_as(x), first)[0]
    assert not same[differences].any()
    assert len(same[differences]) == (slices - first) // 2
    assert torch.equal(x, kept)


def test_3d_wavelets_shrink_all_of_a_difference_but_not_the_average() -> None:
    wavelet, both = Wavelet(torch.ones(2, 1, 16, 16)), torch.full((2, 1, 16, 16), 0.5)
    torch.testing.assert_close(wavelet.shrink(both, 0.1), both)
    apart = both + torch.tensor([0.05, -0.05])[:, None, None, None]
    torch.testing.assert_close(wavelet.shrink(apart, 10.0), both)
    torch.testing.assert_close(wavelet.shrink(apart, 10.0, first=1), apart)  # slice 1 has no partner there


def test_noise_free_wavelet_loses_the_strength() -> None:
    """The one coefficient of an image of one wavelet shrinks by the strength; of a complex image, its modulus does."""
    one = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    one[0, 0, 20, 5] = 1
    atom = Wavelet(one).synthesise(one)
    wavelet = Wavelet(one)
    torch.testing.assert_close(wavelet.shrink(5 * atom, 0.2), 4.8 * atom)
    complex_atom = torch.cat([3 * atom, 4 * atom], dim=1)
    torch.testing.assert_close(wavelet.shrink(complex_atom, 0.2), 0.96 * complex_atom)


def without_spinning(measurement: Measurement, strength: float, tolerance: float = 1e-6) -> Tensor:
    """The minimum of `1/2 ||A x - y||^2 + strength sum |details of W x|`, on one grid of wavelets."""
    A, start = measurement.operator, measurement.operator.pseudo_inverse(measurement.y)
    wavelet = Wavelet(start)
    *_, (x, _) = fista(
        lambda z: A.adjoint(measurement.residual(z)),
        lambda z: wavelet.shrink(z, strength * measurement.sigma_y),
        start,
        20000,
        tolerance,
    )
    return x


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_solution_fulfils_the_optimality_conditions(ct: Measurement, strength: float) -> None:
    """`W A^T (y - A x)` is `strength` times the sign of details that are not 0, no larger elsewhere, 0 for averages."""
    exact = Measurement(ct.y.double(), ct.operator, ct.sigma_y)
    exact.operator.double()
    try:
        x = without_spinning(exact, strength, tolerance=1e-8)
        gradient = -exact.operator.adjoint(exact.residual(x))
    finally:
        exact.operator.float()
    wavelet, threshold = Wavelet(x), strength * exact.sigma_y
    height, width = wavelet.coarsest
    assert (height, width) == (8, 8)
    coefficients, dual = (wavelet.analyse(across_slices(image, 0)[0]) for image in (x, gradient / threshold))
    assert dual[::2, :, :height, :width].abs().max() < 1e-3  # averages of two slices
    coefficients[::2, :, :height, :width] = dual[::2, :, :height, :width] = 0
    used = coefficients.abs() > 1e-6
    assert 0.02 < used.double().mean() < 0.9
    torch.testing.assert_close(dual[used], coefficients[used].sign(), atol=1e-3, rtol=0)
    assert dual.abs().max() < 1 + 1e-3


def test_momentum_does_not_matter_in_the_end(ct: Measurement) -> None:
    """Many iterations of plain proximal gradient descent."""
    wavelet, x = Wavelet(ct.y.new_zeros(32, 32)), torch.zeros(2, 1, 32, 32)
    for _ in range(3000):
        x = wavelet.shrink(x - ct.operator.adjoint(ct.residual(x)), 1.0 * ct.sigma_y)
    found = without_spinning(ct, 1.0)
    torch.testing.assert_close(found, x, atol=2e-3, rtol=0)


def test_spinning_removes_artefacts_and_is_always_the_same(ct: Measurement) -> None:
    found = last(L1Wavelet(0.3), ct)
    assert psnr(found, ct) > psnr(without_spinning(ct, 0.3), ct) + 0.5
    assert psnr(found, ct) > psnr(ct.operator.pseudo_inverse(ct.y), ct) + 1
    torch.manual_seed(5)
    assert torch.equal(last(L1Wavelet(0.3), ct), found)


def test_spinning_moves_the_grid_by_every_shift() -> None:
    """With the identity as proximal operator nothing changes; what it is given has been shifted."""
    y = randn(1, 1, 16, 16)
    seen = []

    def prox(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return z

    *_, end = spinning_fista(denoising(y), prox, period=4, iterations=60)
    torch.testing.assert_close(end.images["estimate"], y)
    shifts = {(i, j) for z in seen for i in range(4) for j in range(4) if torch.allclose(z, y.roll((i, j), (-2, -1)))}
    assert len(shifts) > 12


# --- low rank ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
def test_singular_values_of_blocks_shrink(channels: int) -> None:
    """Beside NumPy, with blocks at the border that are smaller."""
    x = randn(3, channels, 20, 16)
    found = shrink_singular_values(x, 1.5)
    values = (x[:, 0] + 1j * x[:, 1]).numpy() if channels == 2 else x[:, 0].numpy()
    for rows, columns in ((slice(0, 8), slice(8, 16)), (slice(16, 20), slice(0, 8))):
        block = values[:, rows, columns]
        left, singular, right = np.linalg.svd(block.reshape(3, -1), full_matrices=False)
        expected = ((left * np.maximum(singular - 1.5, 0)) @ right).reshape(block.shape)
        np.testing.assert_allclose(found[:, 0, rows, columns], expected.real, atol=1e-10)
        if channels == 2:
            np.testing.assert_allclose(found[:, 1, rows, columns], expected.imag, atol=1e-10)


def test_like_slices_are_denoised_together() -> None:
    """Six slices that are multiples of one image, with noise."""
    image, weights = randn(1, 1, 32, 32, seed=1) * 3, torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    noise = randn(6, 1, 32, 32, seed=2) * 0.3
    found = last(LocallyLowRank(11.0), denoising(weights * image + noise, sigma_y=0.3))
    assert (found - weights * image).norm() < 0.75 * noise.norm()  # the image shrinks a little too


def test_a_single_slice_has_no_rank(ct: Measurement) -> None:
    with pytest.raises(InputError, match="LocallyLowRank compares slices, but there is only 1"):
        next(LocallyLowRank().iterate(denoising(randn(1, 1, 16, 16))))


# --- deep image prior -------------------------------------------------------------------------------------


def test_deep_image_prior_is_better_than_filtered_back_projection_and_stops_at_the_noise(ct: Measurement) -> None:
    torch.manual_seed(0)
    steps = list(DeepImagePrior(averaging=0.8, iterations=400).iterate(ct))
    noise = ct.sigma_y**2 * ct.y[0].numel()
    losses = [step.figures["loss"] for step in steps]
    assert losses[-1] <= noise < min(losses[:-1])
    assert 20 < len(steps) < 400
    x = steps[-1].images["estimate"]
    assert losses[-1] == pytest.approx(float(ct.residual(x).square().sum()) / 2, rel=1e-4)
    assert psnr(x, ct) > psnr(ct.operator.pseudo_inverse(ct.y), ct) + 0.5  # 1.0 dB, more or less by machine


def test_batches_change_nothing_and_discrepancy_0_makes_all_iterations(ct: Measurement) -> None:
    exact = Measurement(ct.y.double(), deepcopy(ct.operator).double(), ct.sigma_y)  # Adam amplifies rounding errors
    one, many = (
        last(DeepImagePrior(discrepancy=0, iterations=3, batch_size=size, averaging=0.5), exact) for size in (1, 8)
    )
    torch.testing.assert_close(one, many, atol=1e-6, rtol=0)
    torch.manual_seed(0)
    noisy = Measurement(ct.y, ct.operator, 1.0)
    assert len(list(DeepImagePrior(discrepancy=0, iterations=3).iterate(noisy))) == 3
    assert len(list(DeepImagePrior(iterations=3).iterate(noisy))) == 1


def test_reconstruction_is_the_running_average_of_the_outputs(ct: Measurement) -> None:
    def outputs(averaging: float) -> list[Tensor]:
        torch.manual_seed(0)
        steps = DeepImagePrior(averaging=averaging, discrepancy=0, iterations=3).iterate(ct)
        return [step.images["estimate"] for step in steps]

    first, second, third = outputs(0.0)
    expected = 0.25 * first + 0.25 * second + 0.5 * third
    torch.testing.assert_close(outputs(0.5)[-1], expected)
    assert not torch.allclose(first, third, atol=1e-3)


# --- all of them ------------------------------------------------------------------------------------------

METHODS: dict[str, Any] = {
    "direct": DirectInverse,
    "tv": partial(TotalVariation, 0.3, iterations=4),
    "wavelet": partial(L1Wavelet, 0.3, iterations=4),
    "llr": partial(LocallyLowRank, 0.3, iterations=4),
    "dip": partial(DeepImagePrior, iterations=4),
}


class Listener(ReconstructionCallback):
    """Records its calls."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int, Step]] = []

    def on_diffusion_step_end(self, trainer: Any, done: int, steps: int, step: Step) -> None:
        self.heard.append((done, steps, step))

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.result: Result = outputs


@pytest.mark.parametrize("name", METHODS)
def test_run_in_a_trainer(name: str, phantom_volume: Path, tmp_path: Path) -> None:
    listener = Listener()
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[listener],
        enable_model_summary=False,
    )  # fmt: skip
    operator = partial(ParallelBeamCT, angles=8, cache_dir=tmp_path)
    module = METHODS[name]()
    torch.manual_seed(0)
    trainer.test(module, VolumeDataModule(str(phantom_volume), operator, 5e-3, slices=2, size=32))
    result, count = listener.result, 1 if name == "direct" else 4
    assert result.images.shape == (2, 1, 32, 32)
    assert (result.weights.count, module.prior, module.image_size) == (0, None, None)
    assert [heard[:2] for heard in listener.heard] == [(i + 1, count) for i in range(count)]
    assert [step.figures for _, _, step in listener.heard] == result.trajectory
    last_step = listener.heard[-1][2]
    assert torch.equal(result.measurement.operator.visible(last_step.images["estimate"]), result.images)
    expected = result.measurement.relative_residual(last_step.images["estimate"])
    assert result.trajectory[-1]["residual"] == pytest.approx(expected)
    assert result.seconds == sum(row["seconds"] for row in result.trajectory) > 0
    assert result.peak_memory_bytes > 50e6


@pytest.mark.parametrize("name", METHODS)
def test_run_without_a_trainer(name: str, ct: Measurement) -> None:
    torch.manual_seed(0)
    result = METHODS[name]().reconstruct(ct)
    assert torch.equal(result.images, ct.operator.visible(last(METHODS[name](), ct)))
    assert len(result.trajectory) == (1 if name == "direct" else 4)


def test_no_going_on_from_a_checkpoint() -> None:
    with pytest.raises(InputError, match="TotalVariation cannot continue from a checkpoint; leave out --ckpt_path"):
        TotalVariation().on_load_checkpoint({})


@pytest.mark.parametrize("name", METHODS)
def test_slices_keep_their_order(name: str, ct: Measurement) -> None:
    """Slices keep their order."""
    assert ct.reference is not None
    x = last(METHODS[name](iterations=30) if name == "dip" else METHODS[name](), ct)
    own, other = (float((x - truth).square().mean()) for truth in (ct.reference, ct.reference.flip(0)))
    assert own < 0.7 * other


@pytest.mark.parametrize("kind", [TotalVariation, L1Wavelet, LocallyLowRank, DeepImagePrior])
def test_images_may_be_complex(kind: Any) -> None:
    y = randn(2, 2, 24, 16).float()
    x = last(kind(iterations=2), denoising(y))
    assert x.shape == y.shape
    assert (x - y).square().flatten(2).sum(2).min() > 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(TotalVariation, 0.0), "strength is 0.0"),
        (partial(TotalVariation, float("nan")), "strength is nan"),
        (partial(L1Wavelet, -1.0), "strength is -1.0"),
        (partial(L1Wavelet, iterations=0), "iterations is 0"),
        (partial(LocallyLowRank, 0.0), "strength is 0.0"),
        (partial(TotalVariation, iterations=0), "iterations is 0"),
        (partial(DeepImagePrior, learning_rate=0), "learning_rate is 0"),
        (partial(DeepImagePrior, averaging=1), "averaging is 1"),
        (partial(DeepImagePrior, discrepancy=-1), "discrepancy is -1"),
        (partial(DeepImagePrior, iterations=0), "iterations is 0"),
        (partial(DeepImagePrior, batch_size=0), "batch_size is 0"),
    ],
)
def test_bad_settings(ct: Measurement, method: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(method().iterate(ct))


@pytest.mark.parametrize("kind", [TotalVariation, L1Wavelet, LocallyLowRank])
def test_strength_in_units_of_no_noise(ct: Measurement, kind: Any) -> None:
    with pytest.raises(InputError, match=r"data\.sigma_y is 0"):
        next(kind().iterate(Measurement(ct.y, ct.operator, 0.0)))
