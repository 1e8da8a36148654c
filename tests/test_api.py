"""The public API: one call from a measurement in memory to a volume, and the exports of `ddip_pl`."""

import inspect
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import make_network, quiet_trainer
from lightning import seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

import ddip_pl
from ddip_pl import InputError, LinearOperator, Measurement, Sampler
from ddip_pl.baselines import DirectInverse
from ddip_pl.data.module import Scan
from ddip_pl.prior.checkpoint import save_prior
from ddip_pl.volumes.frame import Frame

FEW: dict[str, Any] = {"sampler": Sampler(steps=2, start=100), "progress": False}


class Coarse(LinearOperator):
    """Means over 2 x 2 pixels of a blurred image, in detector units that make the norm far from 1."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype, device=x.device)
        return 40 * F.avg_pool2d(F.conv2d(x, kernel[None, None], padding=1), 2)


@pytest.fixture(scope="module")
def priors(tiny_prior: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Tiny priors by number of image channels."""
    path = tmp_path_factory.mktemp("prior") / "complex.safetensors"
    save_prior(path, make_network(in_channels=2, out_channels=2), {}, torch.float32)
    return {1: str(tiny_prior), 2: str(path)}


def ct() -> LinearOperator:
    return ddip_pl.ParallelBeamCT((3, 32, 32), angles=12)


def mri() -> LinearOperator:
    return ddip_pl.SENSE((3, 32, 32), mask=ddip_pl.RandomLines(2), maps=ddip_pl.Birdcage(4))


def images(operator: LinearOperator) -> Tensor:
    """A bright square in each slice; complex images have a ramp as imaginary part."""
    x = torch.zeros(operator.domain)
    x[:, 0, 8:24, 10:20] = 0.8
    x[:, 1:] = x[:, :1] * torch.linspace(0, 0.5, operator.shape[2])
    return x


def measure(operator: LinearOperator, sigma_y: float = 1e-2) -> Tensor:
    return ddip_pl.simulate(images(operator), operator, sigma_y, torch.Generator().manual_seed(0))


# --- one call -------------------------------------------------------------------------------------------------


def test_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_prior: Path) -> None:
    monkeypatch.chdir(tmp_path)
    example = ddip_pl.ParallelBeamCT((4, 128, 128), angles=60)
    np.save("sinograms.npy", example(images(example)).numpy())

    A = ddip_pl.ParallelBeamCT((4, 128, 128), angles=60)
    result = ddip_pl.reconstruct(np.load("sinograms.npy"), A, sigma_y=2e-4, method="dds", prior=str(tiny_prior), **FEW)
    result.save("outputs/mine")

    assert isinstance(result.images, np.ndarray)
    assert {"reconstruction.nii.gz", "metrics.json"} <= {path.name for path in Path("outputs/mine").iterdir()}


@pytest.mark.parametrize("make", [ct, mri])
def test_numpy_gives_numpy_and_a_tensor_the_same_tensor(make: Any, priors: dict[int, str]) -> None:
    operator = make()
    y, prior = measure(operator), priors[operator.channels]
    tensor = ddip_pl.reconstruct(y, operator, 1e-2, prior=prior, reference=images(operator), **FEW)
    array = ddip_pl.reconstruct(y.numpy(), operator, 1e-2, prior=prior, reference=images(operator).numpy(), **FEW)
    assert isinstance(tensor.images, Tensor)
    assert isinstance(array.images, np.ndarray)
    assert tensor.images.shape == operator.domain
    assert np.array_equal(array.images, tensor.images.numpy())
    metrics = tensor.metrics()
    assert metrics.keys() >= {"psnr", "ssim", "residual", "discrepancy"}
    assert array.metrics() == array.metrics(images(operator).numpy()) == metrics
    assert array.seconds > 0


@pytest.mark.parametrize("name", ["dds", "d3ip", "fbp"])
@pytest.mark.parametrize("make", [ct, mri])
def test_it_is_the_result_of_the_command_line(make: Any, name: str, priors: dict[int, str]) -> None:
    """It equals the result of the same method in Lightning's Trainer, bit for bit."""
    operator = make()
    y = measure(operator)
    settings = {} if name == "fbp" else {"prior": priors[operator.channels], "sampler": FEW["sampler"]}
    result = ddip_pl.reconstruct(y, operator, 1e-2, name, seed=3, progress=False, **settings)
    seed_everything(3, verbose=False)
    scan = Scan(Measurement(y, operator, 1e-2), Frame())
    loader: Any = DataLoader([scan], batch_size=None)  # type: ignore[list-item]
    (expected,) = quiet_trainer().predict(ddip_pl.load_method(name, **settings), loader)  # type: ignore[misc]
    assert torch.equal(result.images, expected.images)  # type: ignore[arg-type, union-attr]
    weights = expected.weights.tensors  # type: ignore[union-attr]
    assert all(torch.equal(result.weights.tensors[key], value) for key, value in weights.items())
    assert bool(weights) == (name == "d3ip")
    if name != "fbp":
        other = ddip_pl.reconstruct(y, operator, 1e-2, name, seed=4, progress=False, **settings)
        assert not torch.equal(other.images, result.images)  # type: ignore[arg-type]


def test_an_operator_of_ones_own_needs_forward_only(tiny_prior: Path) -> None:
    operator = Coarse((3, 32, 32))
    found = operator.check()
    assert found.norm > 100
    assert max(found.adjointness, found.gradient) < 1e-5
    sigma_y = 1e-4 * found.norm
    y = measure(operator, sigma_y)
    result = ddip_pl.reconstruct(y, operator, sigma_y, "dds", prior=str(tiny_prior), **FEW)
    assert result.images.shape == (3, 1, 32, 32)
    assert result.measurement.operator.norm == pytest.approx(1, rel=1e-2)
    assert result.measurement.sigma_y == pytest.approx(1e-4)
    assert result.metrics()["residual"] < 0.02
    # The scale of the detector changes nothing.
    thousand = ddip_pl.reconstruct(
        y / found.norm, operator.normalised(), 1e-4, "dds", prior=str(tiny_prior), **FEW
    )  # fmt: skip
    torch.testing.assert_close(result.images, thousand.images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [ct, mri])
def test_the_noise_level_is_estimated_where_it_is_not_given(make: Any, priors: dict[int, str]) -> None:
    operator = make()
    result = ddip_pl.reconstruct(measure(operator, 3e-2), operator, prior=priors[operator.channels], **FEW)
    assert result.measurement.sigma_y == pytest.approx(3e-2, rel=0.3)
    assert result.metrics()["discrepancy"] > 0


def test_a_method_as_an_object(tiny_prior: Path) -> None:
    operator = ct()
    method = ddip_pl.Reconstruction(str(tiny_prior), sampler=FEW["sampler"])
    result = ddip_pl.reconstruct(measure(operator), operator, 1e-2, method, progress=False)
    by_name = ddip_pl.reconstruct(measure(operator), operator, 1e-2, "dds", prior=str(tiny_prior), **FEW)
    assert torch.equal(result.images, by_name.images)  # type: ignore[arg-type]


def test_random_state_is_left_alone(tiny_prior: Path) -> None:
    operator = ct()
    y = measure(operator)
    before = torch.get_rng_state(), torch.initial_seed(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]
    ddip_pl.reconstruct(y, operator, 1e-2, "d3ip", prior=str(tiny_prior), **FEW)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.initial_seed() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index, union-attr]
    assert random.getstate() == before[3]


def holed(y: Tensor) -> Tensor:
    y = y.clone()
    y[0, 0, 0, 0] = float("nan")
    return y


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda y: {"y": y[:2]}, r"y has shape \(2, .*expected a tensor or an array of shape \(3, "),
        (lambda y: {"y": y.tolist()}, "y is a list; expected a tensor or an array"),
        (lambda y: {"y": holed(y)}, "y has NaN or infinite values"),
        (lambda y: {"y": holed(y).numpy()}, "y has NaN or infinite values"),
        (lambda y: {"sigma_y": -1.0}, "sigma_y is -1.0; give"),
        (lambda y: {"sigma_y": float("nan")}, "sigma_y is nan; give"),
        (lambda y: {"method": "magic"}, "method 'magic': no such method; choose from .*dds"),
        (lambda y: {"colour": 3}, "colour"),
        (lambda y: {"method": DirectInverse(), "batch_size": 3}, "batch_size"),
        (lambda y: {"reference": y}, r"reference has shape .* shape \(3, 1, 32, 32\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: Any, message: str) -> None:
    operator = ct()
    y = measure(operator)
    given = {"y": y, "A": operator, "sigma_y": 1e-2, "progress": False} | arguments(y)
    with pytest.raises(InputError, match=message) as caught:
        ddip_pl.reconstruct(**given)
    assert "\n" not in str(caught.value)


def test_a_noise_level_that_nobody_can_tell_is_asked_for() -> None:
    operator = Coarse((3, 32, 32))
    with pytest.raises(InputError, match="the noise level cannot be estimated from y; give sigma_y"):
        ddip_pl.reconstruct(measure(operator), operator, progress=False)


def test_an_operator_that_measures_nothing_is_refused() -> None:
    class Nothing(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x

    with pytest.raises(InputError, match="Nothing measures nothing"):
        ddip_pl.reconstruct(torch.zeros(2, 1, 8, 8), Nothing((2, 8, 8)), 1.0, progress=False)


# --- what the package exports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ddip_pl.__all__)
def test_every_public_name_is_there_and_is_explained(name: str) -> None:
    thing = getattr(ddip_pl, name)
    assert inspect.getdoc(thing)
    assert thing.__doc__, f"{name} inherits its docstring"
    assert getattr(ddip_pl, name) is thing


def test_names_of_the_package() -> None:
    assert sorted(dir(ddip_pl)) == sorted(set(ddip_pl.__all__))
    assert ddip_pl.__version__
    assert {"reconstruct", "load_method", "load_prior", "ParallelBeamCT", "Measurement", "Result"} <= set(dir(ddip_pl))
    with pytest.raises(AttributeError, match=r"attribute.*nothing"):
        ddip_pl.nothing  # noqa: B018


class Total(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True)


def test_slices_measured_together_without_a_word_are_refused() -> None:
    with pytest.raises(InputError, match="`coupled`, now 1,"):
        ddip_pl.reconstruct(torch.ones(1, 1, 16, 16), Total((3, 16, 16)), 0.1)


def test_double_precision_is_refused() -> None:
    operator = ct().double()
    with pytest.raises(InputError, match=r"float64; .*call A\.float\(\)"):
        ddip_pl.reconstruct(operator(operator.zeros()), operator, 0.1)


def test_the_other_byte_order() -> None:
    y = measure(ct()).numpy()
    found, expected = (ddip_pl.reconstruct(v, ct(), 1e-2, "fbp", progress=False) for v in (y.astype(">f4"), y))
    assert np.array_equal(found.images, expected.images)
