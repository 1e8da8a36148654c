"""`ddip-pl benchmark`: every method on every task and volume, in one table; see `usage.BENCHMARK`."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from rich.console import Console

from ddip_pl.callbacks.checkpoint_file import origin
from ddip_pl.callbacks.fingerprint import Fingerprint, difference, fingerprint
from ddip_pl.callbacks.interruption import SIGNALS
from ddip_pl.callbacks.wandb import WandbMode
from ddip_pl.cli.reconstruct import make_parser
from ddip_pl.cli.usage import parser
from ddip_pl.errors import InputError
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
    def fingerprint(self) -> Fingerprint:
        """Everything that the results depend on.

        Raises:
            InputError: the settings cannot be used.
        """
        parser = make_parser("test")
        settings = parser.read(self.arguments[1:])
        return fingerprint("test", yaml.safe_load(parser.dump(settings, skip_unset=False)))

    def is_done(self) -> bool:
        """Whether the folder has results of these settings, this volume and this version."""
        path = self.folder / "run.json"
        if not any(self.folder.glob(f"*/{METRICS}")):
            return False
        try:
            return difference(json.loads(path.read_text()), self.fingerprint) is None
        except (OSError, ValueError):  # InputError is one: the run itself reports what is wrong with its settings
            return False

    def start(self) -> int:
        """Run it, or resume an interrupted run of the same settings; returns the exit code."""
        command = [sys.executable, "-m", "ddip_pl.cli", *self.arguments]
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(f"*/{METRICS}"):  # of other settings
            shutil.rmtree(stale.parent)
        with suppress(InputError):  # which the run itself reports
            now, checkpoint = self.fingerprint, self.folder / "last.ckpt"
            (self.folder / "run.json").write_text(json.dumps(now))
            saved = origin(checkpoint)
            if saved is not None and difference(saved, now) is None:
                command += ["--ckpt_path", str(checkpoint)]
        return run(command)


def run(command: Sequence[str]) -> int:
    """Run a process and return its exit code, or 128 + the signal that was meant to end it.

    Signals are passed on, so that the process can save its state, except Ctrl-C, which a terminal sends to both.
    """
    received: list[int] = []
    with subprocess.Popen(command) as process:

        def receive(number: int, frame: FrameType | None) -> None:
            received.append(number)
            if number != signal.SIGINT:
                process.send_signal(number)

        before = {number: signal.signal(number, receive) for number in SIGNALS}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 128 + received[0] if received else code


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
    options = parser("benchmark").parse_args(arguments)
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
        code = 0 if done else job.start()
        write_tables(options.output, methods)
        if code - 128 in SIGNALS:
            return code
        if code:
            failed.append(job)
    if finished(options.output):
        write_report(options.output, methods)
        console.print(*tables(read_runs([options.output])))
        console.print(f"tables, CSV, galleries and report.html in {options.output}")
    for job in failed:
        console.print(f"[red]failed[/]: {job.task}, {job.volume.name}, {job.method}; see the message above")
    return 2 if failed else 0
