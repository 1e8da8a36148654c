"""`ddip-pl benchmark`: every method on every task and volume, in one table.

Each run is a separate `ddip-pl test` process, so that its peak memory is measured alone and its failure stops no other.
When the command is repeated, finished runs are skipped and interrupted ones resumed. The report covers everything in
the output folder: several commands with the same output share one table.

A file of methods lists variations by name:

    methods:
      d3ip, K = 1:
        config: ../method/d3ip.yaml
        model.adaptation.init_args.slices: 1
      d3ip, published sampling:
        config: [../method/d3ip.yaml, ../sampler/published.yaml]
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from ddip_pl.callbacks.logging import WandbMode
from ddip_pl.errors import ArgumentParser, InputError
from ddip_pl.methods.configs import read_config, with_bases
from ddip_pl.report.page import write_page
from ddip_pl.results.folder import METRICS, finished, read_case
from ddip_pl.results.plots import gallery
from ddip_pl.results.tables import by_subject, markdown, read_runs, read_tests, tables, write_csv
from ddip_pl.volumes.files import split, volume_name


@dataclass
class Job:
    """One method on one task and volume.

    Attributes:
        task: name of the task.
        method: name of the method.
        volume: to reconstruct, see `read_volume`.
        configs: files with settings; later ones override earlier ones.
        settings: further settings by name.
        folder: for the results.
        wandb: see `ddip-pl test --wandb`.
        plugins: see `ddip-pl test --plugins`.
    """

    task: str
    method: str
    volume: Path
    configs: list[Path]
    settings: dict[str, Any]
    folder: Path
    wandb: WandbMode = "disabled"
    plugins: Sequence[str] = ()

    @property
    def arguments(self) -> list[str]:
        """The arguments of `ddip-pl`."""
        configs = [argument for config in self.configs for argument in ("--config", str(config))]
        settings = [argument for name, value in self.settings.items() for argument in (f"--{name}", as_argument(value))]
        names = ["--task", self.task, "--method", self.method, "--wandb", self.wandb]
        names += ["--plugins", *self.plugins] if self.plugins else []
        return ["test", *configs, "--data.path", str(self.volume), *settings, *names, "--output", str(self.folder)]

    @property
    def record(self) -> str:
        """Everything the results depend on, to recognise results of the same settings."""
        contents = [config.read_text() for config in self.configs]
        return json.dumps({"volume": str(self.volume.resolve()), "configs": contents, "settings": self.settings})

    def is_done(self) -> bool:
        """Whether the folder has results of these settings."""
        path = self.folder / "run.json"
        return any(self.folder.glob(f"*/{METRICS}")) and path.is_file() and path.read_text() == self.record

    def start(self) -> int:
        """Run it, or resume an interrupted run of the same settings; returns the exit code."""
        path, checkpoint = self.folder / "run.json", self.folder / "last.ckpt"
        resumes = checkpoint.is_file() and path.is_file() and path.read_text() == self.record
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(f"*/{METRICS}"):  # of other settings
            shutil.rmtree(stale.parent)
        path.write_text(self.record)
        command = [sys.executable, "-m", "ddip_pl.cli", *self.arguments]
        return subprocess.run(command + (["--ckpt_path", str(checkpoint)] if resumes else [])).returncode


def as_argument(value: Any) -> str:
    """A value as text for the command line, which parses YAML and therefore JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def read_methods(paths: Sequence[Path]) -> dict[str, tuple[list[Path], dict[str, Any]]]:
    """Configs and further settings of each method by name, from method configs and files of methods.

    Raises:
        InputError: a file is neither.
    """
    methods: dict[str, tuple[list[Path], dict[str, Any]]] = {}
    for path in paths:
        content = read_config(path)
        if "methods" not in content:
            methods[content.get("method", path.stem)] = with_bases(path), {}
            continue
        for name, settings in content["methods"].items():
            if not isinstance(settings, dict) or "config" not in settings:
                raise InputError(f"methods {path}: {name!r} has no config; add the file of its method")
            named = settings["config"] if isinstance(settings["config"], list) else [settings["config"]]
            configs = [file for config in named for file in with_bases(path.parent / config)]
            methods[name] = configs, {key: value for key, value in settings.items() if key != "config"}
    return methods


def plan(
    tasks: Sequence[Path],
    methods: Sequence[Path],
    volumes: Sequence[Path],
    settings: dict[str, Any],
    output: Path,
    wandb: WandbMode = "disabled",
    plugins: Sequence[str] = (),
) -> list[Job]:
    """All jobs, task by task and volume by volume.

    Raises:
        InputError: a file is missing or is not a config.
    """
    for volume in volumes:
        if not split(volume)[0].exists():
            raise InputError(f"volume {volume}: no such file or folder")
    rows = read_methods(methods)
    jobs = []
    for path in tasks:
        task = read_config(path).get("task", path.stem)
        for volume in volumes:
            for name, (configs, changes) in rows.items():
                place = re.sub(r"[^\w.=-]+", "_", name)
                folder = output / task / volume_name(volume) / place
                jobs.append(Job(task, name, volume, [path, *configs], settings | changes, folder, wandb, plugins))
    return jobs


def write_tables(folder: Path, methods: Sequence[str]) -> None:
    """Write `benchmark.csv`, `benchmark.md` and a gallery for each task and volume, with methods in the given order."""
    tests = read_tests(folder, methods)
    if not tests:
        return
    write_csv(tests, folder / "benchmark.csv")
    sections = []
    for (task, volume), rivals in by_subject(tests):
        name = f"{task}-{volume}.png"
        gallery(rivals, folder / name)
        sections.append(f"## {task}, {volume}\n\n{markdown(rivals)}\n\n![]({name})\n")
    (folder / "benchmark.md").write_text("\n".join(sections))


def write_report(folder: Path, methods: Sequence[str]) -> None:
    """Write `report.html` with all tests in a folder, with methods in the given order."""
    cases = [read_case([*rivals.values()]) for _, rivals in by_subject(read_tests(folder, methods))]
    if cases:
        write_page(folder / "report.html", "Benchmark", cases)


def main(arguments: Sequence[str]) -> int:
    """Run what is not done yet, then write the tables and the report; the exit code is 2 if a run failed."""
    parser = ArgumentParser("ddip-pl benchmark", description=__doc__)
    parser.add_argument("--tasks", nargs="+", required=True, type=Path, help="task configs")
    parser.add_argument("--methods", nargs="+", required=True, type=Path, help="method configs or files of methods")
    parser.add_argument("--volumes", nargs="+", required=True, type=Path, help="volumes to measure and reconstruct")
    parser.add_argument("--slices", type=int, help="central slices of each volume [all]")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder for the results")
    parser.add_argument(
        "--wandb", choices=get_args(WandbMode), default="disabled", help="log every run to Weights & Biases"
    )
    parser.add_argument("--plugins", nargs="+", default=[], help="modules whose classes the configs name")
    options = parser.parse_args(arguments)
    settings = {} if options.slices is None else {"data.slices": options.slices}
    jobs = plan(
        options.tasks, options.methods, options.volumes, settings, options.output, options.wandb, options.plugins
    )
    methods = [job.method for job in jobs]
    console = Console()
    failed = []
    for number, job in enumerate(jobs, 1):
        done = job.is_done()
        state = "already done" if done else "running"
        console.print(f"[bold]{number}/{len(jobs)}[/] {job.task}, {job.volume.name}, {job.method}: {state}")
        if not done and job.start():
            failed.append(job)
        write_tables(options.output, methods)
    if finished(options.output):
        write_report(options.output, methods)
        console.print(*tables(read_runs([options.output])))
        console.print(f"tables, CSV, galleries and report.html in {options.output}")
    for job in failed:
        console.print(f"[red]failed[/]: {job.task}, {job.volume.name}, {job.method}; see the message above")
    return 2 if failed else 0
