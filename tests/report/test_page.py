"""The report: its data, checked in Python, and what it shows in a browser."""

import base64
import json
import math
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nibabel.nifti1 import Nifti1Image

from ddip_pl.report import page
from ddip_pl.report.pack import coarsen, pack, quantise
from ddip_pl.report.page import Case, Shown, as_json, write_page

BROWSERS = ("google-chrome", "chromium", "chromium-browser")
NASTY = "</script><script>hacked = 1</script><b>&amp;\"'$data{}"
SHAPE = (20, 16, 9)  # columns, rows, slices
# Columns go to the left, rows to the back, slices to the head.
AFFINE = np.array([[-2.0, 0, 0, 40], [0, -1.5, 0, 60], [0, 0, 3, -30], [0, 0, 0, 1]])


def image(seed: int, low: float = -1000, high: float = 1000, shape: tuple[int, ...] = SHAPE) -> Nifti1Image:
    data = np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)
    data.flat[:2] = low, high
    return Nifti1Image(data, AFFINE)


def runs_of(count: int = 2) -> list[Shown]:
    """Runs of which the first is best and slowest."""
    return [
        Shown(
            f"method {i}", image(i),
            {"psnr": 30.0 - i, "ssim": 0.9 - 0.1 * (i % 2), "residual": 0.01, "seconds": 9.0 - i},
            [{"slice": k, "psnr": 30.0 - i + k, "ssim": 0.9} for k in range(SHAPE[2])],
            [
                {"step": k, "t": 9 - k, "residual": 0.1 / k, "loss_before": 2.0, "loss_after": 1.0, "seconds": 1.0}
                for k in range(1, 6)
            ],
            "model:\n  steps: 5\n",
        )
        for i in range(count)
    ]  # fmt: skip


def case_of(volume: str = "phantom") -> Case:
    return Case("sv_ct", volume, runs_of(), image(9))


def unpacked(packed: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """The voxels that the page contains."""
    content = np.frombuffer(zlib.decompress(base64.b64decode(packed["codes"])), np.uint8).astype(np.uint16)
    low, high = content.reshape(2, -1)
    codes = np.cumsum(low + 256 * high, dtype=np.uint16)
    return np.where(codes > 0, packed["low"] + packed["step"] * codes.astype(float), np.nan).reshape(shape, order="F")


def content_of(path: Path) -> list[dict[str, Any]]:
    """The data in a page, which must be strict JSON."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert text is not None

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text[1], parse_constant=refuse)


# ---------------------------------------------------------------------------------------------------------- volumes


@settings(max_examples=60)
@given(
    arrays(
        np.float32, st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.floats(-1e6, 1e6, width=32) | st.just(math.nan) | st.just(math.inf),
    )
)  # fmt: skip
def test_a_voxel_is_off_by_half_a_4094th_of_the_range_at_most(data: np.ndarray) -> None:
    finite = np.isfinite(data)
    shown = unpacked(pack(data), data.shape)
    assert np.array_equal(np.isnan(shown), ~finite)
    span = np.ptp(data[finite].astype(float)) if finite.any() else 0
    assert np.abs(shown - data)[finite].max(initial=0) <= span / 4094 / 2 + 1e-9


def test_codes_need_twelve_bits() -> None:
    codes, _, _ = quantise(image(0).get_fdata())
    assert (codes.min(), codes.max()) == (1, 4095)


@settings(max_examples=30)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 4))
def test_coarse_voxels_are_means(shape: tuple[int, int, int], factor: int) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    missing = [part for length in reversed(shape) for part in (0, -length % factor)]
    padded = torch.nn.functional.pad(torch.from_numpy(data)[None], missing, mode="replicate")
    expected = torch.nn.functional.avg_pool3d(padded, factor)[0].numpy()
    assert np.allclose(coarsen(data, factor), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- pages


def test_volumes_are_those_of_the_files_turned_to_the_patient() -> None:
    case = case_of()
    shown = as_json(case, 1)
    for run, original in zip([*shown["runs"], shown["reference"]], [*case.runs, case.reference], strict=True):
        upright = nib.as_closest_canonical(getattr(original, "image", original))
        assert np.allclose(unpacked(run, upright.shape), upright.get_fdata(), atol=2000 / 4094)
        assert np.allclose(shown["affine"], upright.affine)
    assert shown["window"] == [-1000, 1000]


def test_a_coarse_grid_lies_where_the_fine_one_does() -> None:
    """The centre of the volume has the same place in the scanner on both grids."""
    fine, coarse = (as_json(Case("t", "v", [Shown("a", image(0, shape=(8, 6, 4)))]), factor) for factor in (1, 2))
    assert coarse["shape"] == [4, 3, 2]
    centre = [np.array(grid["affine"]) @ [*(np.array(grid["shape"]) - 1) / 2, 1] for grid in (fine, coarse)]
    assert np.allclose(*centre)


@pytest.mark.parametrize("turn", [(0, 1, 2), (0, 2, 1), (2, 1, 0)])
def test_figures_of_a_slice_are_found_where_the_slice_is(turn: tuple[int, int, int]) -> None:
    """Also of axial, coronal and sagittal slices that run from head to foot, front to back, right to left."""
    affine = AFFINE[np.ix_([*turn, 3], [0, 1, 2, 3])] @ np.diag([1, 1, -1, 1])
    data = np.broadcast_to(np.arange(SHAPE[2], dtype=np.float32), SHAPE)
    rows = [{"slice": k, "psnr": 30.0 + k} for k in range(SHAPE[2])]
    shown = as_json(Case("t", "v", [Shown("a", Nifti1Image(data, affine), {}, rows)]), 1)
    voxels = unpacked(shown["runs"][0], tuple(shown["shape"]))
    assert shown["axis"] == turn.index(2)
    for row in shown["runs"][0]["slices"]:
        assert np.allclose(voxels.take(row["place"], axis=shown["axis"]), row["slice"], atol=0.01)


def test_a_run_of_fewer_slices_lies_among_those_of_the_others() -> None:
    whole = image(0)
    part = Nifti1Image(np.asarray(whole.dataobj)[..., 3:5], AFFINE @ nib.affines.from_matvec(np.eye(3), [0, 0, 3]))
    rows = [{"slice": 0, "psnr": 30.0}, {"slice": 1, "psnr": 31.0}]
    shown = as_json(Case("t", "v", [Shown("part", part, {}, rows), Shown("whole", whole)], whole), 1)
    voxels = unpacked(shown["runs"][0], tuple(shown["shape"]))
    assert np.array_equal(np.isfinite(voxels).any(axis=(0, 1)), [3 <= k < 5 for k in range(SHAPE[2])])
    expected = nib.as_closest_canonical(whole).get_fdata()[..., 3:5]
    assert np.allclose(voxels[..., 3:5], expected, atol=1)
    assert [row["place"] for row in shown["runs"][0]["slices"]] == [3, 4]


def test_without_a_reference_outliers_do_not_darken_the_picture() -> None:
    data = np.random.default_rng(0).uniform(0, 1, (30, 30, 30)).astype(np.float32)
    data[0, 0, 0] = 1000
    shown = as_json(Case("t", "v", [Shown("a", Nifti1Image(data, AFFINE))]), 1)
    assert shown["reference"] is None
    assert shown["window"] == pytest.approx([0, 1], abs=0.01)


def test_a_page_stays_in_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Case("t", "v", [Shown("a", image(0, shape=(64, 64, 64))), Shown("b", image(1, shape=(64, 64, 64)))])
    path = tmp_path / "report.html"
    write_page(path, "noise", [noise])
    full = path.stat().st_size
    assert content_of(path)[0]["factor"] == 1
    assert 64**3 * 2 < full < page.BUDGET == 15_000_000
    monkeypatch.setattr(page, "BUDGET", full // 4)
    write_page(path, "noise", [noise])
    assert path.stat().st_size <= full // 4
    assert content_of(path)[0]["shape"] == [32, 32, 32]


def test_text_is_escaped_and_figures_that_are_no_numbers_are_text(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run = Shown(NASTY, image(0), {"psnr": math.inf, "task": NASTY, "nested": {"a": [math.nan]}}, config=NASTY)
    write_page(path, NASTY, [Case(NASTY, NASTY, [run])])
    text = path.read_text()
    assert text.count("<script") == text.count("</script") == 2
    assert "<b>" not in text
    shown = content_of(path)[0]
    assert shown["volume"] == shown["task"] == shown["runs"][0]["name"] == shown["runs"][0]["config"] == NASTY
    assert shown["runs"][0]["metrics"] == {"psnr": "inf", "task": NASTY, "nested": {"a": ["nan"]}}


def test_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, "x", [case_of()])
    text = path.read_text()
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[\w./]*", text)) == {"http://www.w3.org/2000/svg"}


# ------------------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    service = shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.skip("no Chromium or no chromedriver to show the report with")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(service))
    yield driver
    driver.quit()


class Viewer:
    """A page in the browser."""

    def __init__(self, driver: Any, path: Path, width: int, dark: bool):
        self.driver = driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        for log in ("browser", "performance"):
            driver.get_log(log)
        driver.get(path.as_uri())
        self.wait()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self) -> None:
        """Wait until the page is loaded and drawn."""
        self.driver.execute_async_script("""
            const done = arguments[0];
            const wait = () => document.body.classList.contains("ready") || !message.hidden
              ? requestAnimationFrame(() => requestAnimationFrame(done)) : setTimeout(wait, 20);
            wait();""")

    def choose(self, control: str, value: object) -> None:
        """Set a select or a slider, by id or, for the slice of a plane, by the plane's name."""
        self.run(
            """const node = document.getElementById(arguments[0]) ?? document.querySelector(`.${arguments[0]} input`);
               node.value = arguments[1];
               node.dispatchEvent(new Event(node.tagName === "SELECT" ? "change" : "input", {bubbles: true}));""",
            control, value,
        )  # fmt: skip
        self.wait()

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)
        self.wait()

    def at(self) -> list[int]:
        """Position of the crosshair, indices along right, front, head."""
        return [self.run(f"return document.querySelector('.{p} input').valueAsNumber") for p in PLANES]

    def picture(self, plane: str, side: str = "right") -> np.ndarray:
        """Pixels `(rows, columns, 4)` of a plane."""
        width, height, content = self.run(
            """const canvas = document.querySelector(`.${arguments[0]} canvas.${arguments[1]}`);
               const {width, height} = canvas;
               const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
               copy.drawImage(canvas, 0, 0);
               return [width, height, Array.from(copy.getImageData(0, 0, width, height).data)];""",
            plane, side,
        )  # fmt: skip
        return np.array(content, dtype=int).reshape(height, width, 4)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector)

    def box(self, plane: str) -> dict[str, float]:
        """Where a plane is on the screen."""
        return self.run(
            """const stage = document.querySelector(`.${arguments[0]} .stage`);
               stage.scrollIntoView({block: "center"});
               return stage.getBoundingClientRect().toJSON();""",
            plane,
        )

    def mouse(self, plane: str, kind: str, x: float, y: float) -> None:
        """A mouse event in a plane, at a fraction of its width and height."""
        box = self.box(plane)
        where = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "button": "left", "buttons": 1}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, "clickCount": 1, **where})
        self.wait()


PLANES = ("sagittal", "coronal", "axial")  # by the axis across them


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Iterator[Callable[..., Viewer]]:
    """Show cases in the browser; the page must log no error and request nothing during a test."""

    def write_and_show(*cases: Case, title: str = "report", width: int = 1280, dark: bool = False) -> Viewer:
        write_page(tmp_path / "report.html", title, cases or [case_of()])
        return Viewer(driver, tmp_path / "report.html", width, dark)

    yield write_and_show
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert urls
    own = "file://", "data:", "chrome://"  # the last are the browser's own pages
    assert [url for url in urls if not url.startswith(own)] == []


def expected(shown: Nifti1Image, plane: str, index: int, low: float, high: float) -> np.ndarray:
    """Grey values of a plane in radiological orientation: right and front to the left, front and head up."""
    data = nib.as_closest_canonical(shown).get_fdata()
    cut = data.take(index, axis=PLANES.index(plane)).T[::-1, ::-1]
    return np.clip(255 * (cut - low) / (high - low), 0, 255)


def assert_shows(viewer: Viewer, shown: Nifti1Image, low: float, high: float, side: str = "right") -> None:
    for plane, index in zip(PLANES, viewer.at(), strict=True):
        picture = viewer.picture(plane, side)
        assert (picture[..., 3] == 255).all()
        grey = expected(shown, plane, index, low, high)
        assert np.abs(picture[..., :3] - grey[..., None]).max() <= 0.5 + 255 * (2000 / 4094 / 2) / (high - low) + 1e-6


def test_pictures_are_the_volumes_through_the_window(show: Callable[..., Viewer]) -> None:
    case = case_of()
    case.runs[-1].metrics["units"] = "HU"
    viewer = show(case)
    assert_shows(viewer, case.runs[1].image, -1000, 1000, "right")
    assert_shows(viewer, case.runs[0].image, -1000, 1000, "left")
    assert viewer.texts("#presets button") == [
        "Full", "1–99%", "Lung", "Mediastinum", "Soft tissue", "Liver", "Brain", "Bone",
    ]  # fmt: skip
    viewer.click("#presets button:nth-child(2)")
    low, high = np.percentile(image(9).get_fdata(), (1, 99))
    level, width = viewer.run("return [level.valueAsNumber, width.valueAsNumber]")
    assert (level, width) == pytest.approx(((low + high) / 2, high - low), abs=2)
    viewer.click("#presets button:nth-child(3)")
    assert_shows(viewer, case.runs[1].image, -1350, 150)
    viewer.choose("level", 100)
    viewer.choose("width", 500)
    assert_shows(viewer, case.runs[1].image, -150, 350)
    for plane, index in (("axial", 2), ("coronal", 11), ("sagittal", 17)):
        before = viewer.picture(plane)
        viewer.choose(plane, index)
        assert (viewer.picture(plane) != before).any()
    assert viewer.at() == [17, 11, 2]
    assert_shows(viewer, case.runs[1].image, -150, 350)
    viewer.choose("right", "reference")
    assert case.reference is not None
    assert_shows(viewer, case.reference, -150, 350)


def test_the_crosshair_says_where_it_is_and_what_is_there(show: Callable[..., Viewer]) -> None:
    case = case_of()
    viewer = show(case)
    for plane, index in zip(PLANES, (3, 4, 5), strict=True):
        viewer.choose(plane, index)
    voxel = (SHAPE[0] - 1 - 3, SHAPE[1] - 1 - 4, 5)  # columns and rows run to the left and to the back
    x, y, z = (AFFINE @ [*voxel, 1])[:3]
    assert (x, y, z) == (8, 43.5, -15)
    assert viewer.texts("#readout caption") == ["Crosshair at R 8.0, A 43.5, I 15.0 mm"]
    values = [float(text.replace("−", "-").replace(",", "")) for text in viewer.texts("#readout td:nth-child(2)")]
    truth = [shown.get_fdata()[voxel] for shown in (*(run.image for run in case.runs), case.reference)]  # type: ignore[union-attr]
    assert values == pytest.approx(truth, abs=1)
    errors = [float(text.replace("−", "-").replace(",", "")) for text in viewer.texts("#readout td:nth-child(3)")[:2]]
    assert errors == pytest.approx([truth[0] - truth[2], truth[1] - truth[2]], abs=1.5)


def test_errors_are_those_against_the_reference(show: Callable[..., Viewer]) -> None:
    """Black where there is none; a signed error is blue below the truth and red above it."""
    reference = image(9, 0, 100)
    data = reference.get_fdata().astype(np.float32)
    data[:, :, 4] += np.where(np.arange(SHAPE[1]) < 8, 5, -5)  # front rows too bright, the others too dark
    viewer = show(Case("t", "v", [Shown("a", Nifti1Image(data, AFFINE))], reference))
    assert viewer.run("return document.getElementById('gain-choice').hidden")
    viewer.choose("right", "absolute 0")
    assert not viewer.run("return document.getElementById('gain-choice').hidden")
    viewer.choose("axial", 3)
    assert viewer.picture("axial")[..., :3].sum(axis=-1).max() < 20
    viewer.choose("axial", 4)
    faint = viewer.picture("axial")[..., :3].sum(axis=-1)
    viewer.choose("gain", 15)
    assert (viewer.picture("axial")[..., :3].sum(axis=-1) > faint + 100).all()
    viewer.choose("right", "signed 0")
    red, _, blue, _ = np.moveaxis(viewer.picture("axial"), -1, 0)
    assert (red[:8] > blue[:8] + 30).all()
    assert (blue[8:] > red[8:] + 30).all()


def test_the_deviation_is_shown_on_the_scale_of_the_error(show: Callable[..., Viewer]) -> None:
    """Where the deviation is the absolute error, both have the same picture, whatever the gain."""
    reference = image(9, 0, 100)
    off = np.linspace(-20, 20, reference.get_fdata().size, dtype=np.float32).reshape(SHAPE)
    volume = Nifti1Image(reference.get_fdata().astype(np.float32) + off, AFFINE)
    maps = {"standard_deviation": Nifti1Image(np.abs(off), AFFINE), "null_space": Nifti1Image(off, AFFINE)}
    metrics = {"samples": 8, "standard_deviation": 10.0, "null_space_energy": 0.25, "units": "HU"}
    without = Shown("without samples", image(3, 0, 100))
    viewer = show(Case("t", "v", [without, Shown("a", volume, metrics, maps=maps)], reference))
    facts = dict(zip(viewer.texts("#facts dt"), viewer.texts("#facts dd"), strict=True))
    assert facts == {"Samples": "8", "Mean standard deviation": "10 HU", "Null-space energy": "0.25"}
    labels = viewer.texts("#readout th[scope=row]")
    assert labels[-2:] == ["standard deviation of a", "null-space part of a"]
    assert len(viewer.run("return [...right.options].filter((each) => each.text.includes('without samples'))")) == 3
    for gain in (5, 12):
        viewer.choose("gain", gain)
        for shown, same in (("standard_deviation 1", "absolute 1"), ("null_space 1", "signed 1")):
            viewer.choose("right", shown)
            assert not viewer.run("return document.getElementById('gain-choice').hidden")
            assert viewer.texts("#scales span")[-1] == f"{100 / gain:.1f} HU"
            first = viewer.picture("axial").astype(int)
            viewer.choose("right", same)
            assert np.abs(first - viewer.picture("axial")).max() <= 10


def test_warnings_and_provenance_are_those_of_the_run(show: Callable[..., Viewer]) -> None:
    case = case_of()
    doubtful, good = case.runs
    doubtful.metrics |= {
        "warnings": ["<b>too bright</b>", "too small"],
        "provenance": {"version": "1.2", "input": "ab"},
    }
    good.metrics["warnings"] = []
    viewer = show(case)
    assert viewer.texts("#warnings li") == []
    assert viewer.run("return document.getElementById('warnings').hidden")
    viewer.click("#figures tbody tr")
    assert viewer.texts("#warnings li") == ["<b>too bright</b>", "too small"]
    assert not viewer.run("return document.getElementById('warnings').hidden")
    assert viewer.texts("#facts dd")[viewer.texts("#facts dt").index("Provenance")] == "version 1.2, input ab"


def test_methods_differ_and_the_divider_parts_them(show: Callable[..., Viewer]) -> None:
    viewer = show()
    assert (viewer.picture("axial", "left") != viewer.picture("axial", "right")).any()
    clip = "return getComputedStyle(document.querySelector('.axial canvas.right')).clipPath"
    viewer.choose("divider", 25)
    assert viewer.run(clip) == "inset(0px 0px 0px 25%)"
    position = viewer.at()
    viewer.mouse("axial", "mousePressed", 0.25, 0.3)
    viewer.mouse("axial", "mouseMoved", 0.7, 0.3)
    viewer.mouse("axial", "mouseReleased", 0.7, 0.3)
    assert float(re.findall(r"([\d.]+)%", viewer.run(clip))[0]) == pytest.approx(70, abs=0.5)
    assert viewer.at() == position
    viewer.choose("left", "image 1")  # the same on both sides
    assert viewer.run("return getComputedStyle(document.querySelector('.axial canvas.right')).display") == "none"
    assert viewer.run("return getComputedStyle(document.querySelector('.axial canvas.left')).clipPath") == "none"


def test_click_drag_wheel_and_keys_move_the_planes(show: Callable[..., Viewer]) -> None:
    viewer = show()
    viewer.choose("divider", 0)
    before = viewer.picture("coronal"), viewer.picture("sagittal")
    viewer.mouse("axial", "mousePressed", 1 - 16.5 / 20, 1 - 12.5 / 16)
    assert viewer.at() == [16, 12, 4]
    assert (viewer.picture("coronal") != before[0]).any()
    assert (viewer.picture("sagittal") != before[1]).any()
    viewer.mouse("axial", "mouseMoved", 1 - 5.5 / 20, 1 - 3.5 / 16)
    viewer.mouse("axial", "mouseReleased", 1 - 5.5 / 20, 1 - 3.5 / 16)
    assert viewer.at() == [5, 3, 4]
    viewer.mouse("axial", "mouseMoved", 0.5, 0.5)
    assert viewer.at() == [5, 3, 4]
    viewer.run("document.querySelector('.axial .stage').dispatchEvent(new WheelEvent('wheel', {deltaY: -120}))")
    assert viewer.at() == [5, 3, 5]
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "PageDown", "PageDown"):
        event = f"new KeyboardEvent('keydown', {{key: '{key}', cancelable: true}})"
        viewer.run(f"document.querySelector('.axial .stage').dispatchEvent({event})")
    viewer.wait()
    assert viewer.at() == [6, 5, 3]


def tool(viewer: Viewer, name: str) -> None:
    viewer.click(f"#tools button[value={name}]")


def drag(viewer: Viewer, plane: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place to another, in fractions of the plane."""
    viewer.mouse(plane, "mousePressed", *start)
    viewer.mouse(plane, "mouseMoved", *end)
    viewer.mouse(plane, "mouseReleased", *end)


def test_window_is_set_by_dragging_and_by_typing(show: Callable[..., Viewer]) -> None:
    case = case_of()
    viewer = show(case)
    viewer.choose("divider", 0)
    tool(viewer, "Window")
    position, box = viewer.at(), viewer.box("axial")
    drag(viewer, "axial", (0.5, 0.5), (0.5 + 30 / box["width"], 0.5 + 60 / box["height"]))
    assert viewer.at() == position
    assert_shows(viewer, case.runs[1].image, -400 - 1100, -400 + 1100)  # 60 of 300 pixels down, 30 to the right
    viewer.run("width.nextElementSibling.value = 500; width.nextElementSibling.dispatchEvent(new Event('change'))")
    viewer.wait()
    assert_shows(viewer, case.runs[1].image, -650, -150)
    viewer.run("width.nextElementSibling.value = -1; width.nextElementSibling.dispatchEvent(new Event('change'))")
    assert viewer.run("return width.nextElementSibling.value") == "500"


def test_zoom_keeps_the_place_under_the_mouse(show: Callable[..., Viewer]) -> None:
    viewer = show()
    viewer.choose("divider", 0)
    zoom = "new WheelEvent('wheel', {{deltaY: -100, ctrlKey: true, clientX: {}, clientY: {}}})"
    where, box = (0.3, 0.6), viewer.box("axial")
    at = (box["x"] + where[0] * box["width"], box["y"] + where[1] * box["height"])
    for _ in range(4):
        viewer.run(f"document.querySelector('.axial .stage').dispatchEvent({zoom.format(*at)})")
    viewer.wait()
    assert viewer.texts("output[for=zoom]") == ["4.0 ×"]
    viewer.mouse("axial", "mousePressed", *where)
    assert viewer.at()[:2] == [round(20 * (1 - where[0]) - 0.5), round(16 * (1 - where[1]) - 0.5)]
    viewer.mouse("axial", "mouseReleased", *where)
    line = viewer.run("return document.querySelector('.axial .line.down').getBoundingClientRect().x")
    assert line == pytest.approx(at[0], abs=box["width"] * 4 / 20 / 2 + 1)  # the middle of the voxel
    tool(viewer, "Pan")
    before, position = viewer.run("return [...view.centre]"), viewer.at()
    drag(viewer, "axial", (0.5, 0.5), (0.7, 0.5))  # a fifth of the stage is a voxel at this zoom
    assert viewer.run("return view.centre[0]") == pytest.approx(before[0] + 1, abs=0.05)
    assert viewer.at() == position
    drag(viewer, "axial", (0.1, 0.5), (0.9, 0.5))
    drag(viewer, "axial", (0.1, 0.5), (0.9, 0.5))
    drag(viewer, "axial", (0.1, 0.5), (0.9, 0.5))
    assert viewer.run("return view.centre[0]") == pytest.approx(19.5 - 2.5)  # not beyond the picture
    event = "new KeyboardEvent('keydown', {key: '0', cancelable: true})"
    viewer.run(f"document.querySelector('.axial .stage').dispatchEvent({event})")
    viewer.wait()
    assert viewer.run("return getComputedStyle(document.querySelector('.axial canvas')).transform") in (
        "none", "matrix(1, 0, 0, 1, 0, 0)",
    )  # fmt: skip


def test_scale_bar_has_its_length(show: Callable[..., Viewer]) -> None:
    viewer = show()
    bar = (
        "const bar = document.querySelector('.axial .bar'); return [bar.textContent, bar.getBoundingClientRect().width]"
    )
    for zoom, expected_text, length in ((0, "1 cm", 10), (2, "2 mm", 2)):
        viewer.choose("zoom", zoom)
        text, width = viewer.run(bar)
        assert text == expected_text
        assert width == pytest.approx(viewer.box("axial")["width"] * 2**zoom * length / 40, rel=0.01)


def test_region_has_the_statistics_of_its_voxels(show: Callable[..., Viewer]) -> None:
    case = case_of()
    viewer = show(case)
    viewer.choose("divider", 0)
    tool(viewer, "Region")
    position = viewer.at()
    drag(
        viewer, "axial", (0.201, 0.251), (0.599, 0.749)
    )  # columns 8 to 15 and rows 4 to 11 from the right and the back
    assert viewer.at() == position
    assert viewer.texts("#measurement caption") == ["Region of 64 voxels, 1.92 cm²"]
    voxels = [
        nib.as_closest_canonical(shown).get_fdata()[8:16, 4:12, position[2]]
        for shown in (*(run.image for run in case.runs), image(9))
    ]
    figures = [float(text.replace("−", "-")) for text in viewer.texts("#measurement td")]
    expected = [value for part in voxels for value in (part.mean(), part.std(ddof=1))]
    assert figures == pytest.approx(expected, abs=0.6)
    viewer.run("document.querySelector('.axial .stage').dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    viewer.wait()
    assert viewer.run("return document.getElementById('measurement').hidden")


def test_profile_shows_the_values_along_the_line(show: Callable[..., Viewer]) -> None:
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    viewer = show(Case("t", "v", [Shown("a", Nifti1Image(ramp, AFFINE)), Shown("b", image(0))]))
    viewer.choose("divider", 0)
    viewer.choose("right", "image 0")
    tool(viewer, "Profile")
    drag(viewer, "axial", (0.05, 0.5), (0.95, 0.5))
    assert viewer.texts("#measurement figcaption span") == ["Profile, axial"]
    assert viewer.texts("#measurement .legend") == ["ab"]
    path = viewer.run("return document.querySelector('#measurement path.chosen').getAttribute('d')")
    heights = np.array([float(y) for y in re.findall(r",([\d.]+)", path)])
    assert len(heights) > 30
    assert len(set(np.sign(np.diff(heights))) - {0.0}) == 1  # a ramp only rises or only falls


def test_saved_volume_is_the_one_on_the_right(show: Callable[..., Viewer]) -> None:
    case = case_of()
    viewer = show(case)
    content = "return btoa(String.fromCharCode(...new Uint8Array(nifti(choice(arguments[0])))))"
    for key, truth in (
        ("image 1", case.runs[1].image.get_fdata()),
        ("signed 0", case.runs[0].image.get_fdata() - image(9).get_fdata()),
    ):
        saved = Nifti1Image.from_bytes(base64.b64decode(viewer.run(content, key)))
        assert np.allclose(saved.affine, nib.as_closest_canonical(image(9)).affine)
        assert saved.header.get_xyzt_units()[0] == "mm"
        assert np.allclose(saved.get_fdata(), nib.as_closest_canonical(Nifti1Image(truth, AFFINE)).get_fdata(), atol=1)


def test_saved_picture_has_both_sides_of_the_planes(show: Callable[..., Viewer]) -> None:
    flat = [
        Shown(name, Nifti1Image(np.full(SHAPE, value, np.float32), AFFINE)) for name, value in (("a", 0), ("b", 100))
    ]
    viewer = show(Case("t", "v", flat, image(9, 0, 100)))
    viewer.choose("divider", 50)
    width, height, row = viewer.driver.execute_async_script("""
        const done = arguments[0];
        picture().then(createImageBitmap).then((image) => {
          const brush = new OffscreenCanvas(image.width, image.height).getContext("2d");
          brush.drawImage(image, 0, 0);
          done([image.width, image.height, Array.from(brush.getImageData(0, image.height / 4, image.width, 1).data)]);
        });""")
    boxes = [viewer.box(plane) for plane in ("axial", "coronal", "sagittal")]
    assert width == pytest.approx(2 * (sum(box["width"] for box in boxes) + 16), abs=4)
    assert height == pytest.approx(2 * max(box["height"] for box in boxes), abs=4)
    red = np.array(row).reshape(-1, 4)[: int(2 * boxes[0]["width"]), 0]
    middle = len(red) // 2
    assert red[: middle - 8].max() < 5
    assert red[middle + 8 : -8].min() > 250


def test_all_volumes_side_by_side(show: Callable[..., Viewer]) -> None:
    viewer = show(Case("t", "v", runs_of(3), image(9)))
    viewer.run("document.querySelector('#all').open = true")
    viewer.wait()
    assert viewer.texts("#grid button") == ["method 0", "method 1", "method 2", "reference"]
    viewer.click("#grid button:nth-child(2)")
    assert viewer.run("return document.getElementById('right').value") == "image 1"
    assert viewer.texts("#grid [aria-pressed=true]") == ["method 1"]


def test_a_link_leads_to_the_same_place(show: Callable[..., Viewer]) -> None:
    cases = case_of(), Case("u", "w", runs_of(3), image(9))
    viewer = show(*cases)
    viewer.choose("case", 1)
    for plane, index in zip(PLANES, (3, 4, 5), strict=True):
        viewer.choose(plane, index)
    viewer.choose("left", "reference")
    viewer.choose("right", "absolute 2")
    viewer.choose("level", 100)
    viewer.choose("zoom", 1)
    viewer.driver.execute_async_script("setTimeout(arguments[0], 500)")
    link = viewer.run("return location.href")
    for address in (link, link.split("#")[0] + "#case=9&at=1,2&window=1,-5&zoom=x&left=nothing"):
        viewer.driver.get("about:blank")
        viewer.driver.get(address)
        viewer.wait()
        if address == link:
            assert viewer.at() == [3, 4, 5]
            state = viewer.run("return [left.value, right.value, level.valueAsNumber, view.zoom, shown.task]")
            assert state == ["reference", "absolute 2", 100, 2, "u"]
    assert viewer.run("return [left.value, view.zoom, shown.task]") == ["image 0", 1, "sv_ct"]


def test_an_adaptation_without_steps_is_explained(show: Callable[..., Viewer]) -> None:
    def notes(norm: float) -> list[str]:
        runs = runs_of(1)
        runs[0].trajectory = [{"step": k, "lora_norm": norm} for k in (1, 2, 3)]
        return show(Case("t", "v", runs)).texts(".chart .hint")

    assert notes(0.5) == []
    assert "the loss was at the noise level before the first gradient step" in notes(0.0)[0]


def test_planes_have_the_proportions_of_the_patient(show: Callable[..., Viewer]) -> None:
    viewer = show()
    x, y, z = (length * step for length, step in zip(SHAPE, (2, 1.5, 3), strict=True))
    for plane, ratio in (("axial", x / y), ("coronal", x / z), ("sagittal", y / z)):
        box = viewer.box(plane)
        assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.01)
    assert viewer.texts(".axial .letter") == ["R", "L", "A", "P"]
    assert viewer.texts(".coronal .letter") == ["R", "L", "S", "I"]
    assert viewer.texts(".sagittal .letter") == ["A", "P", "S", "I"]


def test_table_sorts_and_chooses_the_run(show: Callable[..., Viewer]) -> None:
    runs = runs_of(3)
    runs[1].metrics["psnr"] = 35.0
    del runs[2].metrics["ssim"]
    viewer = show(Case("t", "v", runs, image(9)), Case("u", "w", runs_of(2)))
    names = "#figures tbody th"
    assert viewer.texts(names) == ["method 0", "method 1", "method 2"]
    for column, order in (("psnr", "102"), ("psnr", "201"), ("ssim", "012"), ("ssim", "210"), ("name", "012")):
        viewer.click(f"#figures [data-column={column}]")
        assert viewer.texts(names) == [f"method {i}" for i in order]
    assert viewer.texts("#figures td.best") == ["0.900", "35.00"]
    assert "method 2" in viewer.texts("#run summary")[0]
    viewer.click("#figures tbody tr:nth-child(2)")
    assert "method 1" in viewer.texts("#run summary")[0]
    assert_shows(viewer, runs[1].image, -1000, 1000)
    assert viewer.texts("#settings") == ["model:\n  steps: 5\n"]
    viewer.choose("case", 1)
    viewer.wait()
    assert viewer.texts(names) == ["method 0", "method 1"]
    assert "u · w" in viewer.texts("#subtitle")[0]


def test_slices_and_curves_lead_to_the_slice(show: Callable[..., Viewer]) -> None:
    viewer = show()
    assert viewer.texts(".chart figcaption span") == [
        "PSNR (dB) by slice", "SSIM by slice", "Residual by step", "Loss by step", "Time (s) by step",
    ]  # fmt: skip
    assert viewer.texts(".legend") == ["method 1method 0", "method 1method 0", "afterbefore"]
    viewer.click("#slices tbody tr:nth-child(2)")
    assert viewer.at()[2] == 1
    assert viewer.texts("#slices tr.here th") == ["2"]
    path = viewer.run("return document.querySelector('.chart path.chosen').getAttribute('d')")
    heights = [float(y) for y in re.findall(r",([\d.]+)", path)]
    assert len(heights) == SHAPE[2]
    assert np.allclose(np.diff(heights), heights[1] - heights[0], atol=0.11)  # rises by 1 dB a slice
    assert heights[0] > heights[-1]


def test_themes_are_light_and_dark(show: Callable[..., Viewer]) -> None:
    def brightness() -> float:
        colour = viewer.run("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    for dark in (False, True):
        viewer = show(dark=dark)
        assert (brightness() < 60, brightness() > 200) == (dark, not dark)
        viewer.click("#theme")
        assert (brightness() < 60, brightness() > 200) == (not dark, dark)
        viewer.click("#theme")
        assert (brightness() < 60) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_fits_on_a_phone(show: Callable[..., Viewer], dark: bool) -> None:
    long = "a_volume_with_a_name_that_goes_on_and_on_and_on_and_on_and_does_not_break"
    runs = runs_of(4)
    for run in runs:
        run.metrics |= {"peak_memory_bytes": 5e8, "adapted_parameters": 12345678, "prior": long, "lpips": 0.1}
    viewer = show(Case("sv_ct", long, runs, image(9)), case_of(), title=long, width=390, dark=dark)
    viewer.run("document.querySelector('#run').open = true")
    viewer.choose("right", "absolute 0")
    assert viewer.run("return document.documentElement.scrollWidth") <= 390
    boxes = [viewer.box(plane) for plane in PLANES]
    assert all(box["left"] >= 0 and box["right"] <= 390 and box["width"] > 250 for box in boxes)


def test_predicted_volume_needs_no_reference(show: Callable[..., Viewer]) -> None:
    run = Shown("dds", image(1), {"residual": 0.01, "seconds": 3.0})
    viewer = show(Case("measured", "scan", [Shown("input", image(0)), run]))
    assert viewer.texts("#right option") == ["input", "dds"]
    assert viewer.texts("#figures thead th") == ["Method", "Residual", "Time (s)"]
    assert viewer.run("return document.getElementById('by-slice').hidden")
    low, high = np.percentile(run.image.get_fdata(), (0.1, 99.9))
    assert_shows(viewer, run.image, low, high)


def test_names_are_text_in_the_browser_too(show: Callable[..., Viewer]) -> None:
    run = Shown(NASTY, image(0), {"method": NASTY, "psnr": math.inf, "prior": NASTY}, config=NASTY)
    viewer = show(Case(NASTY, NASTY, [run], image(1)), case_of(), title=NASTY)
    assert viewer.texts("h1") == [NASTY]
    assert viewer.texts("#figures tbody th") == [NASTY]
    assert viewer.texts("#figures tbody td") == ["∞"]
    assert viewer.run("return typeof hacked") == "undefined"
    assert viewer.texts("main b:not(.letter)") == []


def test_a_coarse_page_says_so(show: Callable[..., Viewer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = show()
    assert viewer.run("return document.getElementById('coarse').hidden")
    monkeypatch.setattr(page, "BUDGET", (tmp_path / "report.html").stat().st_size - 10_000)
    viewer = show()
    assert "2 × 2 × 2" in viewer.texts("#coarse:not([hidden])")[0]
    assert viewer.picture("axial").shape[:2] == (8, 10)


def test_voxels_without_a_value_are_not_painted(show: Callable[..., Viewer]) -> None:
    whole = image(0)
    part = Nifti1Image(np.asarray(whole.dataobj)[..., 3:5], AFFINE @ nib.affines.from_matvec(np.eye(3), [0, 0, 3]))
    viewer = show(Case("t", "v", [Shown("whole", whole), Shown("part", part)], whole))
    shown = viewer.picture("coronal")[::-1, :, 3]  # from foot to head
    assert np.array_equal((shown == 255).all(axis=1), [3 <= k < 5 for k in range(SHAPE[2])])
    viewer.choose("axial", 0)
    assert viewer.texts("#readout td:nth-child(2)")[1] == "–"
