"""`ddip-pl workspace ENTITY/PROJECT`: create a W&B dashboard that compares methods and sweeps."""

from collections.abc import Sequence

from ddip_pl.cli.usage import parser
from ddip_pl.errors import InputError

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ImportError as error:
    raise InputError("the dashboard needs wandb-workspaces; pip install 'ddip-pl[workspaces]'") from error

STEP = "trainer/global_step"
ADAPTATION = "model.init_args.adaptation.init_args"


def trajectory(title: str, *names: str, log: bool = False) -> wr.LinePlot:
    """Figures of every diffusion step, one line per method."""
    return wr.LinePlot(title=title, x=STEP, y=[f"diffusion/{name}" for name in names], log_y=log,
                       groupby=wr.Config("method"))  # fmt: skip


def against(x: wr.Config | wr.SummaryMetric, title: str, log: bool = False) -> wr.ScatterPlot:
    """PSNR of every run against a setting or a metric."""
    return wr.ScatterPlot(title=title, x=x, y=wr.SummaryMetric("psnr"), log_x=log)


def workspace(entity: str, project: str) -> ws.Workspace:
    """The dashboard. Runs are not grouped globally, because a sweep would then become a single point."""
    sections = {
        "Quality": [
            wr.BarPlot(title="PSNR (dB)", metrics=[wr.SummaryMetric("psnr")], groupby=wr.Config("method")),
            wr.BarPlot(title="SSIM", metrics=[wr.SummaryMetric("ssim")], groupby=wr.Config("method")),
            against(wr.SummaryMetric("seconds"), "PSNR against time (s)", log=True),
            against(wr.Config("data.init_args.operator.init_args.angles"), "PSNR against the number of views"),
        ],
        "Adaptation": [
            against(wr.Config(f"{ADAPTATION}.slices"), "PSNR against K"),
            against(wr.Config(f"{ADAPTATION}.training.steps"), "PSNR against L"),
            against(wr.Config(f"{ADAPTATION}.training.rank"), "PSNR against the LoRA rank"),
            against(wr.Config(f"{ADAPTATION}.training.learning_rate"), "PSNR against the learning rate", log=True),
        ],
        "Trajectory": [
            trajectory("Data residual", "residual", log=True),
            trajectory("Loss before and after the gradient steps", "loss_before", "loss_after", log=True),
            trajectory("Norm of the LoRA update", "lora_norm"),
            trajectory("Seconds per step", "seconds"),
        ],
        "Images": [
            wr.MediaBrowser(title="Input, reconstruction, reference, error", media_keys=["planes"], num_columns=1),
            wr.MediaBrowser(title="Along the trajectory", media_keys=["images/x0_hat", "images/estimate"],
                            mode="grid", grid_x_axis="step", grid_y_axis="run"),
        ],
    }  # fmt: skip
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Reconstructions",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Summary("psnr"), ascending=False)],
            pinned_columns=[
                *("config:task.value", "config:volume.value", "config:method.value"),
                *("summary:psnr", "summary:ssim", "summary:seconds", "summary:residual"),
            ],
        ),
    )


def main(arguments: Sequence[str]) -> None:
    """Save the dashboard to a project and print its address.

    Raises:
        InputError: the project is not given as ENTITY/PROJECT.
    """
    options = parser("workspace")
    entity, _, project = options.parse_args(arguments).project.partition("/")
    if not entity or not project or "/" in project:
        options.error("give the project as ENTITY/PROJECT")
    print(workspace(entity, project).save().url)
