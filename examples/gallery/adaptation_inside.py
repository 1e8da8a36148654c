"""Watch D3IP adapt a prior of hard-edged ellipses to a scan, step by step."""

import numpy as np
from head import head, plt

import ddip_pl

truth = head(slices=4)
A = ddip_pl.ParallelBeamCT((4, 128, 128), angles=20)
y = A(truth) + 2e-4 * np.random.default_rng(0).normal(size=A.range).astype(np.float32)

settings = {"prior": "ellipses_128_published", "sampler.steps": 16}
training = {"steps": 3, "learning_rate": 3e-3, "discrepancy": 0.0}  # do not end at the noise level
gradient_steps = {"adaptation.slices": 2, **{f"adaptation.training.{name}": value for name, value in training.items()}}
without = ddip_pl.reconstruct(y, A, sigma_y=2e-4, method="dds", progress=False, **settings)
adapted = ddip_pl.reconstruct(y, A, sigma_y=2e-4, method="d3ip", progress=False, **settings, **gradient_steps)

figure, (loss, size, image) = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
steps = [(i, row) for i, row in enumerate(adapted.trajectory) if "loss_before" in row]
for name in ("loss_before", "loss_after"):
    loss.semilogy([i for i, _ in steps], [row[name] for _, row in steps], "o-", label=name.replace("_", " "))
loss.set(xlabel="diffusion step", title="loss of the sampled slices")
loss.legend()
size.plot([i for i, _ in steps], [row["lora_norm"] for _, row in steps], "o-")
size.set(xlabel="diffusion step", title="norm of the LoRA update")
image.imshow(np.concatenate([result.images[2, 0] for result in (without, adapted)], 1), cmap="gray", vmin=0, vmax=0.7)
gains = " / ".join(f"{result.metrics(truth)['psnr']:.1f}" for result in (without, adapted))
image.set_title(f"without, with: {gains} dB")
image.set_axis_off()
figure.savefig("adaptation_inside.png", dpi=110)
