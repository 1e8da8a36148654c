"use strict";

// A volume is an array of 12-bit codes, x fastest, on the RAS+ grid of its case; code 0 stands for no value. The screen
// shows every axis from its high end to its low one: patient's right, front and head are left, left and up.
const LEVELS = 4096;
const PLANES = [
  { name: "Axial", normal: 2, across: 0, up: 1 },
  { name: "Coronal", normal: 1, across: 0, up: 2 },
  { name: "Sagittal", normal: 0, across: 1, up: 2 },
];
const HIGH = "RAS", LOW = "LPI";
const COLUMNS = {
  psnr: { label: "PSNR", unit: "dB", digits: 2, best: Math.max },
  ssim: { label: "SSIM", digits: 3, best: Math.max },
  lpips: { label: "LPIPS", digits: 3, best: Math.min },
  residual: { label: "Residual" },
  discrepancy: { label: "Discrepancy", digits: 2 },
  seconds: { label: "Time", unit: "s", digits: 1 },
  peak_memory_bytes: { label: "Memory", unit: "GB", digits: 2, scale: 1e-9 },
  adapted_parameters: { label: "Adapted weights", digits: 0 },
};
const FACTS = {
  task: "Task", method: "Method", chosen: "Chosen", hidden_discrepancy: "Hidden discrepancy", prior: "Prior",
  samples: "Samples", standard_deviation: "Mean standard deviation", null_space_energy: "Null-space energy",
  steps: "Steps", sigma_y: "Noise σ", slices: "Slices",
  seconds: "Time", peak_memory_bytes: "Memory", device: "Device", versions: "Versions", provenance: "Provenance",
};
const HOUNSFIELD = {
  Lung: [-600, 1500], Mediastinum: [50, 350], "Soft tissue": [40, 400], Liver: [30, 150], Brain: [40, 80], Bone: [400, 1800],
};
const MAPS = { standard_deviation: "standard deviation", null_space: "null-space part" };
const COLOURS = {
  image: ["#000000", "#ffffff"],
  absolute: ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#fcffa4"],
  signed: ["#d6e8ff", "#58a6ff", "#12457d", "#000000", "#7d2a12", "#ff8a58", "#ffe3d6"],
};
Object.assign(COLOURS, { standard_deviation: COLOURS.absolute, null_space: COLOURS.signed });
const OPAQUE = 0xff000000;
const UNADAPTED = "0 throughout: the loss was at the noise level before the first gradient step, so the prior stayed as it was.";

const cases = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
let shown; // the case
let run; // the run of this case whose figures are shown
let sort = { column: null, descending: true };
const view = {
  left: "", right: "", divider: 0, position: [0, 0, 0], level: 0.5, width: 1, gain: 5, // what is shown
  zoom: 1, centre: [0, 0, 0], tool: "Crosshair", mark: null, // see tools.js
};

/** An element with attributes (functions become event listeners) and children; strings become text, never HTML. */
function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const scaled = (value, scale) => (typeof value === "number" ? value * scale : value);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const number = (value, digits) => {
  if (typeof value === "string") return value === "inf" ? "∞" : value;
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  const fixed = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  const small = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) && digits === undefined;
  const text = small
    ? value.toExponential(1).replace(".0e", "e")
    : value.toLocaleString("en", digits === undefined ? { maximumSignificantDigits: 3 } : fixed);
  return text.replaceAll("-", "−");
};

// ---------------------------------------------------------------------------------------------------------- volumes

/** The inverse of `pack`: base64, zlib, low and high bytes, differences. */
async function unpack(volume) {
  if (volume.values) return;
  const packed = Uint8Array.from(atob(volume.codes), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = bytes.length / 2;
  const values = new Uint16Array(count);
  for (let i = 0, code = 0; i < count; i++) {
    code += bytes[i] + (bytes[count + i] << 8);
    values[i] = code;
  }
  volume.values = values;
}

const valueAt = (volume, index) => (volume.values[index] ? volume.low + volume.step * volume.values[index] : NaN);
const indexOf = ([x, y, z]) => x + shown.shape[0] * (y + shown.shape[1] * z);
const inMillimetres = ([x, y, z]) => shown.affine.slice(0, 3).map(([a, b, c, d]) => a * x + b * y + c * z + d);
const spacing = () => [0, 1, 2].map((axis) => Math.hypot(...shown.affine.slice(0, 3).map((row) => row[axis])));

/** Everything a side can show, by key: volumes, maps of their uncertainty and, with a reference, their errors. */
function choices() {
  const ofRuns = (kind, label) =>
    shown.runs.map((volume, i) => ({ key: `${kind} ${i}`, kind, label: label(volume.name), volume }));
  const images = ofRuns("image", (name) => name);
  const maps = shown.runs.flatMap((each, i) =>
    Object.entries(each.maps).map(([kind, volume]) =>
      ({ key: `${kind} ${i}`, kind, label: `${MAPS[kind]} of ${each.name}`, volume })));
  if (!shown.reference) return [...images, ...maps];
  return [
    ...images,
    { key: "reference", kind: "image", label: "reference", volume: shown.reference },
    ...maps,
    ...ofRuns("absolute", (name) => `|error| of ${name}`),
    ...ofRuns("signed", (name) => `signed error of ${name}`),
  ];
}
const choice = (key) => choices().find((each) => each.key === key);

// --------------------------------------------------------------------------------------------------------- painting

/** 256 colours interpolated between anchors, each as the four bytes of a pixel. */
function ramp(anchors) {
  const colours = anchors.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (colours.length - 1), first = Math.min(Math.floor(place), colours.length - 2);
    const between = (a, b) => Math.round(a + (place - first) * (b - a));
    const [r, g, b] = [0, 1, 2].map((k) => between(colours[first][k], colours[first + 1][k]));
    return OPAQUE | (b << 16) | (g << 8) | r;
  });
}
const RAMPS = Object.fromEntries(Object.entries(COLOURS).map(([kind, anchors]) => [kind, ramp(anchors)]));

/** The values at the two ends of the ramp; errors and maps have the same ones, so that they can be compared. */
function ends(kind) {
  if (kind === "image") return [view.level - view.width / 2, view.level + view.width / 2];
  const largest = (shown.window[1] - shown.window[0]) / view.gain;
  return [COLOURS[kind] === COLOURS.signed ? -largest : 0, largest];
}

/** A function from the index of a voxel to its colour. */
function painter({ kind, volume }) {
  const [low, high] = ends(kind), colours = RAMPS[kind];
  const colour = (value) => colours[clamp(Math.round((255 * (value - low)) / (high - low)), 0, 255)];
  if (kind === "image" || kind in MAPS) {
    const { low: first, step } = volume;
    const table = Uint32Array.from({ length: LEVELS }, (_, code) => (code ? colour(first + step * code) : 0));
    return (index) => table[volume.values[index]];
  }
  const magnitude = kind === "absolute" ? Math.abs : (value) => value;
  return (index) => {
    const error = valueAt(volume, index) - valueAt(shown.reference, index);
    return Number.isNaN(error) ? 0 : colour(magnitude(error));
  };
}

function paint(canvas, { normal, across, up }, colourOf) {
  const strides = [1, shown.shape[0], shown.shape[0] * shown.shape[1]];
  const columns = (canvas.width = shown.shape[across]), rows = (canvas.height = shown.shape[up]);
  const pixels = new Uint32Array(columns * rows);
  const offset = view.position[normal] * strides[normal];
  for (let row = 0, pixel = 0; row < rows; row++) {
    const start = offset + (rows - 1 - row) * strides[up];
    for (let column = columns - 1; column >= 0; column--) pixels[pixel++] = colourOf(start + column * strides[across]);
  }
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), columns, rows), 0, 0);
}

let drawn = {}; // what each canvas shows, so that only changes are painted

function draw() {
  for (const side of ["left", "right"]) {
    const what = choice(view[side]);
    let colourOf;
    for (const plane of PLANES) {
      const key = [view[side], ...ends(what.kind), view.position[plane.normal]].join();
      if (drawn[plane.name + side] === key) continue;
      paint(plane[side], plane, (colourOf ??= painter(what)));
      drawn[plane.name + side] = key;
    }
  }
  const millimetres = inMillimetres(view.position);
  for (const plane of PLANES) {
    const { normal, across, up, stage } = plane;
    const percent = (axis) => `${100 * toStage(axis, view.position[axis])}%`;
    stage.style.setProperty("--x", percent(across));
    stage.style.setProperty("--y", percent(up));
    stage.style.setProperty("--divider", `${view.divider}%`);
    stage.classList.toggle("split", view.left !== view.right);
    layZoom(plane);
    plane.slider.value = view.position[normal];
    plane.place.textContent = `${view.position[normal] + 1} / ${shown.shape[normal]}`;
    plane.slider.setAttribute("aria-valuetext", `slice ${view.position[normal] + 1} of ${shown.shape[normal]}`);
  }
  drawReadout(millimetres);
  drawScales();
  drawMeasurement();
  drawAll();
  for (const row of byId("slices").querySelectorAll("tr[data-place]"))
    row.classList.toggle("here", Number(row.dataset.place) === view.position[shown.axis]);
  const here = shown.shape[shown.axis] > 1 ? view.position[shown.axis] / (shown.shape[shown.axis] - 1) : 0.5;
  byId("curves").style.setProperty("--here", here);
  clearTimeout(writing);
  writing = setTimeout(writeAddress, 300); // browsers limit how often
}

let pending = false, writing;
function redraw() {
  if (!pending) requestAnimationFrame(() => ((pending = false), draw()));
  pending = true;
}

/** The position of the crosshair and the value of every volume there. */
function drawReadout(millimetres) {
  const index = indexOf(view.position), truth = shown.reference ? valueAt(shown.reference, index) : NaN;
  const unit = shown.units ? ` ${shown.units}` : "";
  const place = millimetres.map((value, axis) => `${(value < 0 ? LOW : HIGH)[axis]} ${Math.abs(value).toFixed(1)}`);
  const fine = (value) => number(value, digitsOf());
  const rows = shown.runs.map((each) => [each.name, each]);
  if (shown.reference) rows.push(["reference", shown.reference]);
  const compared = rows.slice(0, shown.runs.length).map(([, volume]) => volume);
  rows.push(...choices().filter(({ kind }) => kind in MAPS).map(({ label, volume }) => [label, volume]));
  byId("readout").replaceChildren(
    element("caption", {}, `Crosshair at ${place.join(", ")} mm`),
    element("tr", {}, element("th", { scope: "col" }, "Volume"), element("th", { scope: "col" }, `Value${unit}`),
      ...(shown.reference ? [element("th", { scope: "col" }, "Error")] : [])),
    ...rows.map(([name, volume]) => {
      const value = valueAt(volume, index);
      const error = compared.includes(volume) ? fine(value - truth) : "";
      return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, fine(value)),
        ...(shown.reference ? [element("td", {}, error)] : []));
    }),
  );
}

/** Number of decimals that resolves a thousandth of the window. */
const digitsOf = () => clamp(Math.ceil(3 - Math.log10(shown.window[1] - shown.window[0] || 1)), 0, 9);

/** The colour scales of both sides with the values at their ends. */
function drawScales() {
  const sides = [...new Set([view.left, view.right])].map(choice);
  const kinds = [...new Set(sides.map((side) => side.kind))];
  byId("scales").replaceChildren(...kinds.map((kind) => {
    const [low, high] = ends(kind), labels = sides.filter((side) => side.kind === kind).map((side) => side.label);
    return element("div", { class: "scale" }, element("span", {}, labels.join(", ")),
      element("i", { style: `background: linear-gradient(to right, ${COLOURS[kind].join()})` }),
      element("span", {}, number(low, digitsOf())), element("span", {}, `${number(high, digitsOf())} ${shown.units}`));
  }));
}

// ------------------------------------------------------------------------------------------------------- the planes

function move(axis, index) {
  view.position[axis] = clamp(Math.round(index), 0, shown.shape[axis] - 1);
  redraw();
}

function buildPlane(plane) {
  const { name, normal, across, up } = plane;
  plane.left = element("canvas", { class: "left" });
  plane.right = element("canvas", { class: "right" });
  plane.canvases = [plane.left, plane.right];
  plane.bar = element("i", { class: "bar" });
  plane.overlay = element("svg", { class: "overlay", viewBox: "0 0 100 100", preserveAspectRatio: "none" });
  plane.place = element("output");
  plane.slider = element("input", {
    type: "range", min: 0, "aria-label": `${name} slice`, input: () => move(normal, plane.slider.valueAsNumber),
  });
  const letter = (side, text) => element("b", { class: `letter ${side}`, "aria-hidden": "true" }, text);
  let dividing = false, turned = 0, from;
  const follow = (event) => {
    const box = plane.stage.getBoundingClientRect();
    if (dividing) return setDivider((100 * (event.clientX - box.left)) / box.width);
    TOOLS[view.tool](plane, { event, from, now: pointOf(plane, event) });
  };
  plane.stage = element("div", {
    class: "stage", tabindex: 0, role: "application",
    "aria-label": `${name} plane. Arrow keys move the crosshair, Page Up and Page Down change the slice, plus and minus zoom.`,
    pointerdown: (event) => {
      if (event.button) return;
      const box = plane.stage.getBoundingClientRect();
      const distance = Math.abs(event.clientX - box.left - (view.divider / 100) * box.width);
      dividing = view.left !== view.right && distance < (event.pointerType === "touch" ? 16 : 7);
      plane.stage.setPointerCapture(event.pointerId);
      from = pointOf(plane, event);
      follow(event);
    },
    pointermove: (event) => plane.stage.hasPointerCapture(event.pointerId) && follow(event),
    wheel: (event) => {
      event.preventDefault();
      if (event.ctrlKey) return setZoom(view.zoom * 2 ** clamp(-event.deltaY / 200, -0.5, 0.5), pointOf(plane, event));
      turned += clamp(-event.deltaY, -50, 50);
      if (Math.abs(turned) < 50) return;
      move(normal, view.position[normal] + Math.sign(turned));
      turned = 0;
    },
    keydown: (event) => {
      const steps = {
        ArrowLeft: [across, 1], ArrowRight: [across, -1], ArrowUp: [up, 1], ArrowDown: [up, -1],
        PageUp: [normal, 1], PageDown: [normal, -1],
      };
      const zoom = { "+": view.zoom * 1.25, "-": view.zoom / 1.25, 0: 1 }[event.key];
      if (zoom && !event.ctrlKey && !event.metaKey) return setZoom(zoom, { ...view.position });
      if (event.key === "Escape") return setMark(null);
      if (!steps[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const [axis, step] = steps[event.key];
      move(axis, view.position[axis] + step);
    },
  },
    plane.left, plane.right, plane.overlay, plane.bar,
    ...["line down", "line across", "divider"].map((name) => element("i", { class: name })),
    letter("at-left", HIGH[across]), letter("at-right", LOW[across]),
    letter("at-top", HIGH[up]), letter("at-bottom", LOW[up]));
  return element("figure", { class: `plane ${name.toLowerCase()}` },
    element("figcaption", {}, element("span", {}, name), plane.place), plane.stage, plane.slider);
}

/** Scale the planes in proportion. A thin stack has two of them beside the axial one, otherwise all are in a row. */
function layOut() {
  const lengths = spacing().map((step, axis) => step * shown.shape[axis]);
  for (const plane of PLANES) {
    const ratio = lengths[plane.across] / lengths[plane.up];
    plane.stage.style.setProperty("--ratio", ratio);
    plane.stage.classList.toggle("strip", ratio > 6);
    plane.slider.max = shown.shape[plane.normal] - 1;
  }
  const [x, y, z] = lengths, least = Math.max(x, y) / 3;
  byId("planes").classList.toggle("thin", z < 0.45 * y);
  byId("planes").style.setProperty("--x", `${Math.max(x, least)}fr`);
  byId("planes").style.setProperty("--y", `${Math.max(y, least)}fr`);
}

// ------------------------------------------------------------------------------------------------------- the window

function setWindow(level, width) {
  Object.assign(view, { level, width });
  for (const [id, value] of [["level", level], ["width", width]]) {
    byId(id).value = value;
    byId(id).nextElementSibling.value = value.toFixed(Math.max(digitsOf() - 1, 0));
  }
  for (const button of byId("presets").children)
    button.setAttribute("aria-pressed", button.value === [level, width].join());
  redraw();
}

function setDivider(percent) {
  view.divider = clamp(percent, 0, 100);
  byId("divider").value = view.divider;
  redraw();
}

/** Values below which these shares of the voxels are. */
function percentiles(volume, ...shares) {
  const counts = new Uint32Array(LEVELS);
  for (const code of volume.values) counts[code]++;
  const all = volume.values.length - counts[0];
  return shares.map((share) => {
    let code = 1;
    for (let below = counts[1]; below < share * all && code < LEVELS - 1; below += counts[code]) code++;
    return volume.low + volume.step * code;
  });
}

function buildWindow() {
  const [low, high] = shown.window, range = high - low || 1;
  // Files may omit the units, but only Hounsfield units go that far below 0.
  const hounsfield = shown.units === "HU" || (!shown.units && low <= -500);
  const [dark, bright] = percentiles(shown.reference ?? shown.runs.at(-1), 0.01, 0.99);
  const presets = {
    Full: [(low + high) / 2, range],
    "1–99%": [(dark + bright) / 2, bright - dark || range],
    ...(hounsfield ? HOUNSFIELD : {}),
  };
  byId("presets").replaceChildren(...Object.entries(presets).map(([name, [level, width]]) =>
    element("button", { type: "button", value: [level, width], click: () => setWindow(level, width) }, name)));
  Object.assign(byId("level"), { step: "any", min: low, max: high });
  Object.assign(byId("width"), { step: "any", min: range / 100, max: 1.25 * range });
  setWindow(...presets.Full);
}

// ------------------------------------------------------------------------------------------------ tables and curves

function showRun(chosen) {
  const focused = byId("figures").contains(document.activeElement);
  run = chosen;
  view.right = `image ${shown.runs.indexOf(run)}`;
  buildChoices();
  buildFigures();
  if (focused) byId("figures").querySelector("[aria-current] button").focus();
  buildCurves();
  buildSlices();
  buildFacts();
  redraw();
}

function buildChoices() {
  const groups = {
    image: "Volumes", standard_deviation: "Standard deviation", null_space: "Null-space part",
    absolute: "Absolute error", signed: "Signed error",
  };
  const options = (kind) =>
    choices().filter((each) => each.kind === kind).map(({ key, label }) => element("option", { value: key }, label));
  for (const side of ["left", "right"]) {
    const filled = Object.entries(groups).map(([kind, label]) => element("optgroup", { label }, ...options(kind)));
    byId(side).replaceChildren(...filled.filter((group) => group.children.length));
    byId(side).value = view[side];
  }
  byId("gain-choice").hidden = [view.left, view.right].every((key) => choice(key).kind === "image");
}

const heading = (label, unit) => (unit ? `${label} (${unit})` : label);

/** Figures of merit of all runs; a click on a heading sorts, a click on a row selects the run. */
function buildFigures() {
  const columns = Object.entries(COLUMNS).filter(([name]) => shown.runs.some((each) => each.metrics[name]));
  const rank = (each) => {
    const value = sort.column === "name" ? each.name : each.metrics[sort.column];
    return value ?? -Infinity;
  };
  const runs = [...shown.runs];
  const order = (a, b) => (rank(a) > rank(b)) - (rank(a) < rank(b));
  if (sort.column) runs.sort((a, b) => (sort.descending ? order(b, a) : order(a, b)));
  const head = (name, { label, unit }) => {
    const state = sort.column === name ? (sort.descending ? "descending" : "ascending") : undefined;
    const turn = () => {
      sort = { column: name, descending: sort.column === name ? !sort.descending : name !== "name" };
      buildFigures();
      byId("figures").querySelector(`[data-column="${name}"]`).focus();
    };
    return element("th", { scope: "col", "aria-sort": state },
      element("button", { type: "button", "data-column": name, click: turn }, heading(label, unit)));
  };
  const cell = (each, name, { digits, scale = 1, best }) => {
    const value = each.metrics[name];
    const values = shown.runs.map((other) => other.metrics[name]).filter((other) => typeof other === "number");
    const wins = best && values.length > 1 && value === best(...values);
    return element("td", { class: wins ? "best" : undefined }, number(scaled(value, scale), digits));
  };
  const row = (each) =>
    element("tr", { "aria-current": each === run ? "true" : undefined, click: () => showRun(each) },
      element("th", { scope: "row" }, element("button", { type: "button" }, each.name)),
      ...columns.map(([name, column]) => cell(each, name, column)));
  const heads = [head("name", { label: "Method" }), ...columns.map(([name, column]) => head(name, column))];
  byId("figures").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...runs.map(row)),
  );
}

function buildSlices() {
  byId("by-slice").hidden = !run.slices.length;
  if (!run.slices.length) return;
  byId("by-slice-title").textContent = `Slices of ${run.name}`;
  const columns = Object.entries(COLUMNS).filter(([name]) => name in run.slices[0]);
  const heads = ["Slice", ...columns.map(([, { label, unit }]) => heading(label, unit))];
  const row = (each) =>
    element("tr", { "data-place": each.place, click: () => move(shown.axis, each.place) },
      element("th", { scope: "row" }, element("button", { type: "button" }, String(each.slice + 1))),
      ...columns.map(([name, { digits }]) => element("td", {}, number(each[name], digits))));
  byId("slices").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...run.slices.map(row)),
  );
}

function buildCurves() {
  const curves = [];
  const measured = shown.runs.filter((each) => each.slices.length > 1);
  for (const name of measured.length ? ["psnr", "ssim"] : []) {
    const { label, unit } = COLUMNS[name];
    const lines = measured.map((each) => ({
      name: each.name, chosen: each === run, points: each.slices.map((row) => [row.place, row[name]]),
    }));
    const places = { extent: [0, shown.shape[shown.axis] - 1], pick: (place) => move(shown.axis, place) };
    curves.push(chart(`${heading(label, unit)} by slice`, unit ?? "", "slice", lines, places));
  }
  const quantities = new Set(run.trajectory.flatMap(Object.keys)).difference(new Set(["step", "t"]));
  const stem = (column) => column.replace(/_(before|after)$/, ""); // of the gradient steps; both share one chart
  for (const name of new Set([...quantities].map(stem))) {
    const words = name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
    const { label, unit, scale = 1 } = COLUMNS[name] ?? { label: words };
    const points = (column) =>
      run.trajectory.filter((row) => column in row).map((row) => [row.step, scaled(row[column], scale)]);
    const lines = [...quantities].filter((column) => stem(column) === name).map((column) => ({
      name: column.slice(name.length + 1), chosen: !column.endsWith("_before"), points: points(column),
    }));
    const title = `${heading(label, unit)} by step`;
    const note = name === "lora_norm" && lines[0].points.every(([, norm]) => norm === 0) ? UNADAPTED : undefined;
    if (lines[0].points.length > 1) curves.push(chart(title, unit ?? "", "step", lines, { note }));
  }
  byId("curves").replaceChildren(...curves);
}

/** Round values between two numbers, or powers of ten on a logarithmic axis. */
function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const first = Math.ceil(low), count = Math.floor(high) - first + 1, every = Math.ceil(count / 4);
    return Array.from({ length: count }, (_, i) => first + i).filter((power) => (power - first) % every === 0);
  }
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  return Array.from({ length: 6 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((tick) => tick <= high);
}

/** Lines over slices or steps; the axis is logarithmic if the values span more than a factor of 30. */
function chart(title, unit, over, lines, { pick, extent, note }) {
  const [width, height, left, bottom, top, right] = [320, 150, 46, 20, 8, 8];
  const values = lines.flatMap((line) => line.points.map(([, y]) => y)).filter((y) => typeof y === "number");
  const logarithmic = values.length > 0 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 30;
  const onAxis = logarithmic ? Math.log10 : (y) => y;
  let [low, high] = values.length ? [onAxis(Math.min(...values)), onAxis(Math.max(...values))] : [0, 1];
  const room = (high - low) * 0.06 || Math.abs(low) * 0.01 || 1;
  [low, high] = [low - room, high + room];
  const xs = lines.flatMap((line) => line.points.map(([x]) => x));
  const [first, last] = extent ?? [Math.min(...xs), Math.max(...xs)];
  const toX = (x) => left + ((width - left - right) * (x - first)) / (last - first || 1);
  const toY = (y) => height - bottom - ((height - bottom - top) * (onAxis(y) - low)) / (high - low);
  const path = (points) => {
    const drawable = points.filter(([, y]) => typeof y === "number");
    return drawable.map(([x, y], i) => `${i ? "L" : "M"}${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join("");
  };
  const one = extent ? 1 : 0; // slices count from 1
  const chosen = lines.find((line) => line.chosen) ?? lines[0], others = lines.filter((line) => line !== chosen);
  const readout = element("output"), dot = element("circle", { class: "dot", r: 3.5, visibility: "hidden" });
  const moving = `--from: ${left}px; --span: ${width - left - right}px`; // the line follows the crosshair
  const label = `${title} of ${chosen.name}`;
  const marks = ticks(low, high, logarithmic), decimals = Math.ceil(-Math.log10(marks[1] - marks[0]) - 1e-9);
  const digits = logarithmic || !(decimals <= 4) ? undefined : Math.max(decimals, 0); // as many as tell the marks apart
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...marks.flatMap((tick) => {
      const value = logarithmic ? 10 ** tick : tick, y = toY(value);
      return [element("line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y }),
        element("text", { x: left - 6, y: y + 3.5, "text-anchor": "end" }, number(value, digits))];
    }),
    element("text", { x: left, y: height - 5 }, `${over} ${number(first + one)}`),
    element("text", { x: width - right, y: height - 5, "text-anchor": "end" }, number(last + one)),
    ...(extent ? [element("line", { class: "here", y1: top, y2: height - bottom, style: moving })] : []),
    ...others.map((line) => element("path", { class: "other", d: path(line.points) })),
    element("path", { class: "chosen", d: path(chosen.points) }),
    dot,
  );
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * width;
    const distance = (point) => Math.abs(toX(point[0]) - x);
    return chosen.points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
  };
  svg.addEventListener("pointermove", (event) => {
    const [x, y] = nearest(event), drawable = typeof y === "number";
    readout.value = `${over} ${number(x + one)}: ${number(y)} ${unit}`;
    dot.setAttribute("visibility", drawable ? "visible" : "hidden");
    if (drawable) dot.setAttribute("cx", toX(x)), dot.setAttribute("cy", toY(y));
  });
  svg.addEventListener("pointerleave", () => {
    readout.value = "";
    dot.setAttribute("visibility", "hidden");
  });
  if (pick) svg.addEventListener("click", (event) => pick(nearest(event)[0]));
  const rest = others.length > 1 ? "others" : others[0]?.name;
  const legend = element("p", { class: "legend" }, element("i"), chosen.name, element("i", { class: "other" }), rest);
  return element("figure", { class: pick ? "chart pick" : "chart" },
    element("figcaption", {}, element("span", {}, title), readout), svg,
    ...(rest ? [legend] : []), ...(note ? [element("p", { class: "hint" }, note)] : []));
}

function buildFacts() {
  const figures = run.metrics, warnings = figures.warnings ?? [];
  const listed = (values) => Object.entries(values).map(([name, value]) => `${name} ${value}`).join(", ");
  const written = {
    hidden_discrepancy: (values) =>
      Object.entries(values).map(([name, value]) => `${name} ${number(value)}`).join(", "),
    peak_memory_bytes: (bytes) => `${number(bytes * 1e-9, 2)} GB`,
    seconds: (seconds) => `${number(seconds, 1)} s`,
    standard_deviation: (value) => `${number(value)} ${shown.units}`,
    versions: listed,
    provenance: listed,
  };
  const facts = Object.keys(FACTS).filter((name) => figures[name]);
  const say = (name) => (written[name] ?? number)(figures[name]);
  byId("facts").replaceChildren(...facts.map((name) =>
    element("div", {}, element("dt", {}, FACTS[name]), element("dd", {}, say(name)))));
  const short = ["prior", "seconds", "peak_memory_bytes", "device"].filter((name) => facts.includes(name)).map(say);
  byId("run").querySelector("summary").textContent = [run.name, ...short, "settings"].join(" · ");
  byId("settings").hidden = !run.config;
  byId("settings").textContent = run.config;
  byId("run").hidden = !facts.length && !run.config;
  byId("warnings").hidden = !warnings.length;
  byId("warnings").replaceChildren(...warnings.map((warning) => element("li", {}, warning)));
}

// ---------------------------------------------------------------------------------------------------------- the page

async function showCase(chosen) {
  const maps = chosen.runs.flatMap((each) => Object.values(each.maps));
  const volumes = [...chosen.runs, ...maps, ...(chosen.reference ? [chosen.reference] : [])];
  await Promise.all(volumes.map(unpack));
  shown = chosen;
  drawn = {};
  const steps = spacing().map((step) => number(step)).join(" × ");
  const names = [shown.task, shown.volume].filter((name) => !document.title.includes(name));
  byId("subtitle").textContent = [...names, `${shown.shape.join(" × ")} voxels of ${steps} mm`].join(" · ");
  byId("coarse").hidden = shown.factor === 1;
  const cube = Array(3).fill(shown.factor).join(" × ");
  byId("coarse").textContent = `At reduced resolution: each voxel is the mean of ${cube}. The files have all voxels.`;
  view.position = shown.shape.map((length) => Math.floor(length / 2));
  view.mark = null;
  view.left = "image 0";
  if (shown.runs.length === 1 && shown.reference) view.left = "reference";
  layOut();
  setZoom(1);
  setDivider(40);
  buildWindow();
  showRun(shown.runs.at(-1));
  draw();
}

/** The page follows the system's theme until the switch is used. */
function buildTheme() {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.style.colorScheme ? root.style.colorScheme === "dark" : system.matches);
  const label = () => {
    byId("theme").textContent = isDark() ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `${byId("theme").textContent} theme`);
  };
  byId("theme").addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
}

function start() {
  const readout = [element("table", { id: "readout" }), element("div", { id: "scales" })];
  byId("planes").append(...PLANES.map(buildPlane), element("div", { class: "readout" }, ...readout));
  byId("case").append(...cases.map((each, i) => element("option", { value: i }, `${each.task}, ${each.volume}`)));
  byId("case-choice").hidden = cases.length < 2;
  byId("case").addEventListener("change", () => showCase(cases[byId("case").value]));
  for (const side of ["left", "right"])
    byId(side).addEventListener("change", () => {
      view[side] = byId(side).value;
      buildChoices();
      redraw();
    });
  byId("divider").addEventListener("input", () => setDivider(byId("divider").valueAsNumber));
  for (const id of ["level", "width"]) {
    const typed = byId(id).nextElementSibling;
    byId(id).addEventListener("input", () => setWindow(byId("level").valueAsNumber, byId("width").valueAsNumber));
    typed.addEventListener("change", () => {
      const value = typed.valueAsNumber;
      const valid = Number.isFinite(value) && (id === "level" || value > 0);
      setWindow(...(valid ? Object.values({ level: view.level, width: view.width, [id]: value }) : [view.level, view.width]));
    });
  }
  const setGain = () => {
    view.gain = byId("gain").valueAsNumber;
    byId("gain").nextElementSibling.value = `${view.gain} ×`;
    redraw();
  };
  byId("gain").addEventListener("input", setGain);
  byId("gain").nextElementSibling.value = `${view.gain} ×`;
  buildTheme();
  buildTools();
  return readAddress();
}

start().then(
  () => document.body.classList.add("ready"),
  (error) => {
    byId("message").textContent = `Cannot show this page: ${error.message}. It needs a browser from 2024 or later.`;
    byId("message").hidden = false;
    throw error;
  },
);
