"""The manual: its commands are parsed, its site is built, its reference is complete, versions agree."""

import glob
import re
import shlex
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

import ddip_pl
from ddip_pl.cli import benchmark, commands, compare, demo, parser, workspace

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "docker/README.md"]


# --- commands -------------------------------------------------------------------------------------------------


def calls_in(text: str) -> list[str]:
    """Calls of `ddip-pl` in the code blocks of a page, fenced or indented, without anything before them."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(
        r"(?:^ {4,}.*\n)+", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    lines = "\n".join([*fenced, *map(textwrap.dedent, indented)]).replace("\\\n", " ").splitlines()
    calls = [
        re.match(r"(?:\$ )?(?:\w+=\S+ )*(?:docker run .* )?ddip-pl(?::\w+)? +(?P<arguments>[a-z].*)", line)
        for line in lines
    ]
    return [call["arguments"] for call in calls if call]


def test_commands_are_found_in_every_kind_of_block() -> None:
    text = textwrap.dedent("""
        Text with `ddip-pl inline`.

            ddip-pl one --a 1 \\
                --b 2
            $ ddip-pl two
            ddip-pl: error: no command

        ```bash
        A=. ddip-pl three  # as well
        ```

        ddip-pl is no command here.

            docker run --rm -v "$PWD:/data" ddip-pl:cpu four
        """)
    assert sorted(map(tuple, map(shlex.split, calls_in(text)))) == [
        ("four",), ("one", "--a", "1", "--b", "2"), ("three", "#", "as", "well"), ("two",),
    ]  # fmt: skip


class Parsed(Exception):
    """Raised when all settings have been parsed and the work would begin."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with the project's configs; every command stops before its work begins."""

    def stop(*_: object, **__: object) -> None:
        raise Parsed

    for name in ("configs", "examples", "ddip_pl"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parser.Parser, "instantiate", stop)
    monkeypatch.setattr(benchmark.Job, "is_done", stop)
    monkeypatch.setattr(compare, "read_runs", stop)
    monkeypatch.setattr(demo, "save_template", stop)
    monkeypatch.setattr(workspace, "workspace", stop)
    return tmp_path


def given(arguments: str) -> list[str]:
    """Arguments of a command as the shell passes them, with test files in place of the user's."""
    arguments = arguments.replace("TASK.yaml", "sv_ct.yaml").replace("METHOD.yaml", "d3ip.yaml")
    words = [found for word in shlex.split(arguments, comments=True) for found in sorted(glob.glob(word)) or [word]]
    for word in words:
        if word.endswith(".ckpt"):
            torch.save({"loops": {}}, word)
        elif re.fullmatch(r"[\w.]+\.nii\.gz", word):
            Path(word).touch()
    return words


def parse(arguments: str) -> None:
    """Raise `Parsed` if the command is valid, any other error if not."""
    words = given(arguments)
    commands.run(words[0], words[1:])


COMMANDS = sorted({command: page.name for page in PAGES for command in calls_in(page.read_text())}.items())


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("command", "page"), COMMANDS)
def test_command_can_be_parsed(command: str, page: str) -> None:
    with pytest.raises(Parsed):
        parse(command)


TASKS = [page for page in PAGES if page.parent.name == "tasks"]


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.stem)
def test_options_in_the_text_can_be_given_to_the_first_command(page: Path) -> None:
    text = page.read_text()
    first = calls_in(text)[0]
    options = re.findall(r"`(--[a-z][^\s`]* [^`]+)`", text)
    assert options
    with pytest.raises(Parsed):
        parse(" ".join([first, *options]))


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "command",
    [
        "test --config configs/task/no_such_task.yaml",
        "test --config configs/task/sv_ct.yaml --config configs/method/d3ip.yaml --data.path A --data.slice 3",
        "test --config configs/task/sv_ct.yaml --data.path A --model.adaptation.init_args.slices 3",
        "test --config configs/task/sv_ct.yaml --data.path A --data.slices few",
        "predict --config configs/task/measured.yaml --data.path A --data.operator B",
        "simulate --config configs/task/sv_ct.yaml --data.path A",
        "fit --config configs/prior/ellipses_128.yaml --data.volume A",
        "benchmark --tasks configs/task/sv_ct.yaml --methods configs/method/no_such_method.yaml --volumes A.nii.gz",
        "compare",
        "demo --angles 3",
        "reconstruct A.nii.gz",
    ],
)
def test_what_has_rotted_would_be_found(command: str) -> None:
    with pytest.raises((ddip_pl.errors.InputError, SystemExit)):
        parse(command)


# --- site -----------------------------------------------------------------------------------------------------


class Loaded(HTMLParser):
    """The addresses of the images, styles and scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        settings = dict(attrs)
        name = {"script": "src", "img": "src", "link": "href"}.get(tag)
        if name and settings.get(name) and settings.get("rel") not in ("next", "prev"):
            self.found.append(str(settings[name]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual as a web site; strict, so that broken links and unreadable docstrings are errors."""
    if find_spec("mkdocs") is None:
        pytest.skip("no mkdocs: pip install 'ddip-pl[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [path for path in site.glob("**/*.html") if path.name != "404.html"]  # its paths start at the site's root
    assert len(pages) >= 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.found
        for address in loaded.found:
            assert (page.parent / address.split("?")[0]).is_file(), f"{page.relative_to(site)}: {address}"


def test_site_has_the_examples_and_every_page(site: Path) -> None:
    extending = (site / "extending" / "index.html").read_text()
    assert all(name in extending for name in ("SuperResolution", "Landweber", "BiasAdaptation"))
    shown = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert pages == set(re.findall(r"[\w/]+\.md", str(shown)))


def test_reference_has_every_module() -> None:
    folder = ROOT / "ddip_pl"
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in folder.glob("*/*.py")
        if path.stem != "__init__"
    }
    listed = [
        name for page in ROOT.glob("docs/reference/*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]
    assert sorted(listed) == sorted(modules)


# --- versions -------------------------------------------------------------------------------------------------


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation["version"] == released[0] == ddip_pl.__version__


def test_files_and_folders_that_the_docker_images_take_are_there() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for dockerfile in ROOT.glob("docker/*.Dockerfile")
        for line in re.findall(r"^COPY (.*) \S+$", dockerfile.read_text(), re.M)
        for word in line.split()
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
