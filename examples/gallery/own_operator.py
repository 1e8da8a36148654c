"""Write an operator for a new measurement: here a microscope that blurs, and records only some of the pixels."""

import numpy as np
import torch
import torch.nn.functional as F
from head import head, show

import ddip_pl


class BlurredPixels(ddip_pl.LinearOperator):
    """A Gaussian blur, then a random half of the pixels. `forward` is all that is needed."""

    def __init__(self, shape: tuple[int, int, int], width: float = 1.5):
        super().__init__(shape)
        line = torch.exp(-(torch.arange(-5.0, 6) ** 2) / (2 * width**2))
        self.register_buffer("kernel", (line / line.sum()).view(1, 1, 1, -1))
        pixels = torch.rand(shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5
        self.register_buffer("recorded", pixels.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blurred = F.conv2d(F.conv2d(x, self.kernel, padding=(0, 5)), self.kernel.mT, padding=(5, 0))
        return self.recorded * blurred


truth = head()
A = BlurredPixels((8, 128, 128))
print(A.check())  # linear? are adjoint and gradient exact?

y = A(truth) + 0.01 * np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
shown = {"measured": y}
for method, settings in {"fbp": {}, "dds": {"sampler.steps": 20, "estimator.iterations": 10}}.items():
    result = ddip_pl.reconstruct(y, A, sigma_y=0.01, method=method, progress=False, **settings)
    name = "conjugate gradients" if method == "fbp" else method
    shown[f"{name}\n{result.metrics(truth)['psnr']:.1f} dB"] = result.images
show({**shown, "truth": truth}, "own_operator.png")
