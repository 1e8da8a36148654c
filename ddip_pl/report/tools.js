"use strict";

// What dragging in a plane does, what it measures, and what can be saved.

const BARS = [1, 2, 5, 10, 20, 50, 100, 200]; // lengths of the scale bar in mm

// ---------------------------------------------------------------------------------------------------- zoom and place

/** Where a voxel is in a plane, as a fraction of the whole, unzoomed picture. */
const fraction = (axis, place) => (shown.shape[axis] - place - 0.5) / shown.shape[axis];

/** How far the zoomed picture is moved along an axis, as a fraction of the stage. */
const shift = (axis) => (0.5 - fraction(axis, view.centre[axis])) * view.zoom;

/** From a fraction of the stage to a fraction of the picture, and from a voxel to a fraction of the stage. */
const toPicture = (axis, onStage) => (onStage - 0.5 - shift(axis)) / view.zoom + 0.5;
const toStage = (axis, place) => (fraction(axis, place) - 0.5) * view.zoom + 0.5 + shift(axis);

/** The point of a mouse event in a plane: voxels along both axes, with fractions. */
function pointOf({ stage, across, up }, event) {
  const box = stage.getBoundingClientRect();
  const along = (axis, offset, length) => shown.shape[axis] * (1 - toPicture(axis, offset / length)) - 0.5;
  return { [across]: along(across, event.clientX - box.left, box.width), [up]: along(up, event.clientY - box.top, box.height) };
}

/** Zoom all planes; a point of a plane stays where it is. */
function setZoom(zoom, point = {}) {
  const before = view.zoom;
  view.zoom = clamp(zoom, 1, 16);
  for (const [axis, place] of Object.entries(point))
    view.centre[axis] = place - ((place - view.centre[axis]) * before) / view.zoom;
  centre(view.centre);
  byId("zoom").value = Math.log2(view.zoom);
  byId("zoom").nextElementSibling.value = `${number(view.zoom, 1)} ×`;
}

/** Move the picture, as far as it fills the stage. */
function centre(place) {
  view.centre = place.map((each, axis) => {
    const middle = (shown.shape[axis] - 1) / 2, room = (shown.shape[axis] / 2) * (1 - 1 / view.zoom);
    return clamp(each, middle - room, middle + room);
  });
  redraw();
}

/** Place picture, scale bar and mark of a plane. */
function layZoom(plane) {
  const { stage, across, up, canvases, bar } = plane;
  const [x, y] = [across, up].map((axis) => 100 * shift(axis));
  for (const canvas of canvases) canvas.style.transform = `translate(${x}%, ${y}%) scale(${view.zoom})`;
  stage.style.setProperty("--clip", `${100 * toPicture(across, view.divider / 100)}%`);
  const width = (spacing()[across] * shown.shape[across]) / view.zoom;
  const length = BARS.findLast((each) => each <= 0.3 * width) ?? BARS[0];
  bar.style.width = `${(100 * length) / width}%`;
  bar.textContent = length < 10 ? `${length} mm` : `${length / 10} cm`;
  const here = view.mark?.plane === plane;
  plane.overlay.replaceChildren(...(here ? [drawnMark(plane)] : []));
}

// ------------------------------------------------------------------------------------------------------------- tools

const TOOLS = {
  Crosshair: ({ across, up }, { now }) => [across, up].forEach((axis) => move(axis, now[axis])),
  Window: (plane, { event }) => {
    const range = shown.window[1] - shown.window[0] || 1;
    setWindow(view.level - (event.movementY * range) / 300, Math.max(view.width + (event.movementX * range) / 300, range / 1000));
  },
  Pan: ({ across, up }, { from, now }) => {
    const place = [...view.centre];
    for (const axis of [across, up]) place[axis] += from[axis] - now[axis];
    centre(place);
  },
  Region: (plane, { from, now }) => setMark({ kind: "Region", plane, from, now }),
  Profile: (plane, { from, now }) => setMark({ kind: "Profile", plane, from, now }),
};

function setMark(mark) {
  view.mark = mark;
  redraw();
}

function setTool(name) {
  view.tool = name;
  for (const button of byId("tools").children) button.setAttribute("aria-pressed", button.value === name);
  for (const { stage } of PLANES) stage.dataset.tool = name;
}

/** The rectangle or line of the mark, in hundredths of the stage. */
function drawnMark({ across, up }) {
  const { kind, from, now } = view.mark;
  const [x1, x2] = [from, now].map((point) => 100 * toStage(across, point[across]));
  const [y1, y2] = [from, now].map((point) => 100 * toStage(up, point[up]));
  if (kind === "Profile") return element("line", { x1, y1, x2, y2 });
  const [left, top] = [Math.min(x1, x2), Math.min(y1, y2)];
  return element("path", { d: `M${left},${top}h${Math.abs(x2 - x1)}v${Math.abs(y2 - y1)}h${-Math.abs(x2 - x1)}z` });
}

// ------------------------------------------------------------------------------------------------------ measurements

/** The volumes that are measured: all reconstructions and the reference. */
const measured = () => choices().filter(({ kind }) => kind === "image");

/** Indices of the voxels whose centres are inside the region, on the slice that is shown. */
function voxelsInRegion({ plane: { normal, across, up }, from, now }) {
  const range = (axis) => {
    const [low, high] = [from[axis], now[axis]].sort((a, b) => a - b);
    return [Math.max(Math.ceil(low), 0), Math.min(Math.floor(high), shown.shape[axis] - 1)];
  };
  const [[left, right], [bottom, top]] = [range(across), range(up)], found = [], place = [];
  place[normal] = view.position[normal];
  for (place[up] = bottom; place[up] <= top; place[up]++)
    for (place[across] = left; place[across] <= right; place[across]++) found.push(indexOf(place));
  return found;
}

function statistics(volume, indices) {
  const values = indices.map((index) => valueAt(volume, index)).filter((value) => !Number.isNaN(value));
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
  return { mean, deviation: Math.sqrt(variance) };
}

/** Points along the profile, half a voxel apart: distance in mm and index of the nearest voxel. */
function alongProfile({ plane: { normal, across, up }, from, now }) {
  const steps = spacing(), lengths = [across, up].map((axis) => now[axis] - from[axis]);
  const millimetres = Math.hypot(lengths[0] * steps[across], lengths[1] * steps[up]);
  const count = Math.max(Math.ceil(2 * Math.hypot(...lengths)), 1);
  return Array.from({ length: count + 1 }, (_, i) => {
    const place = [];
    place[normal] = view.position[normal];
    [across, up].forEach((axis, k) => (place[axis] = Math.round(from[axis] + (lengths[k] * i) / count)));
    const inside = place.every((each, axis) => each >= 0 && each < shown.shape[axis]);
    return { distance: (millimetres * i) / count, index: inside ? indexOf(place) : null };
  }).filter(({ index }) => index !== null);
}

/** Mean and standard deviation in the region, or values along the profile, of every volume. */
function drawMeasurement() {
  const { mark } = view;
  byId("measurement").hidden = !mark;
  if (!mark) return;
  if (mark.kind === "Profile") {
    const points = alongProfile(mark), [front, ...others] = [choice(view.right), ...measured()];
    const lines = [front, ...others.filter(({ key }) => key !== front.key)].map(({ label, volume }, i) => ({
      name: label, chosen: i === 0, points: points.map(({ distance, index }) => [distance, valueAt(volume, index)]),
    }));
    const finite = lines.map((line) => ({ ...line, points: line.points.filter(([, y]) => !Number.isNaN(y)) }));
    byId("measurement").replaceChildren(chart(`Profile, ${mark.plane.name.toLowerCase()}`, shown.units, "mm", finite, {}));
    return;
  }
  const indices = voxelsInRegion(mark), steps = spacing();
  const area = (indices.length * steps[mark.plane.across] * steps[mark.plane.up]) / 100;
  const cells = (...texts) => texts.map((text) => element("td", {}, text));
  const heads = ["Volume", `Mean${shown.units ? ` (${shown.units})` : ""}`, "Standard deviation"];
  byId("measurement").replaceChildren(element("table", {},
    element("caption", {}, `Region of ${indices.length} voxels, ${number(area)} cm²`),
    element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head))),
    ...measured().map(({ label, volume }) => {
      const { mean, deviation } = statistics(volume, indices);
      return element("tr", {}, element("th", { scope: "row" }, label),
        ...cells(number(mean, digitsOf()), number(deviation, digitsOf())));
    })));
}

// ------------------------------------------------------------------------------------------------------ side by side

/** The slice at the crosshair of every volume; a click chooses the one on the right. */
function drawAll() {
  if (!byId("all").open) return;
  const plane = PLANES.find(({ normal }) => normal === shown.axis);
  const ratio = getComputedStyle(plane.stage).getPropertyValue("--ratio");
  byId("grid").replaceChildren(...measured().map((what) => {
    const canvas = element("canvas", { style: `aspect-ratio: ${ratio}` });
    paint(canvas, plane, painter(what));
    const choose = () => {
      view.right = what.key;
      buildChoices();
      redraw();
    };
    return element("button", { type: "button", "aria-pressed": what.key === view.right, click: choose }, canvas, what.label);
  }));
}

// ------------------------------------------------------------------------------------------------------------ saving

function save(name, type, content) {
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const fileName = (...words) => words.join(" ").replace(/[^\w.-]+/g, "_");

/** The three planes as they are shown, without crosshair and letters, as a PNG file. */
async function picture() {
  const boxes = PLANES.map(({ stage }) => stage.getBoundingClientRect());
  const scale = Math.max(window.devicePixelRatio, 2), gap = 8;
  const sheet = new OffscreenCanvas(
    scale * boxes.reduce((sum, { width }) => sum + width + gap, -gap), scale * Math.max(...boxes.map(({ height }) => height)));
  const brush = sheet.getContext("2d");
  brush.fillRect(0, 0, sheet.width, sheet.height);
  let start = 0;
  PLANES.forEach(({ across, up, left, right }, i) => {
    const [width, height] = [scale * boxes[i].width, scale * boxes[i].height], middle = (width * view.divider) / 100;
    const parts = view.left === view.right ? [[left, 0, width]] : [[left, 0, middle], [right, middle, width]];
    for (const [canvas, from, to] of parts) {
      brush.save();
      brush.beginPath();
      brush.rect(start + from, 0, to - from, height);
      brush.clip();
      brush.translate(start + width / 2 + shift(across) * width, height / 2 + shift(up) * height);
      brush.scale(view.zoom, view.zoom);
      brush.drawImage(canvas, -width / 2, -height / 2, width, height);
      brush.restore();
    }
    start += width + scale * gap;
  });
  return sheet.convertToBlob({ type: "image/png" });
}

/** What is on the right, as a NIfTI file of float32 values; values have the 12 bits of this page. */
function nifti({ kind, volume }) {
  const content = new ArrayBuffer(352 + 4 * volume.values.length), header = new DataView(content);
  const put = (method, offset, ...values) => {
    const size = { setInt16: 2, setInt32: 4, setFloat32: 4, setUint8: 1 }[method];
    values.forEach((value, i) => header[method](offset + i * size, value, true));
  };
  put("setInt32", 0, 348);
  put("setInt16", 40, 3, ...shown.shape, 1, 1, 1, 1);
  put("setInt16", 70, 16, 32); // float32
  put("setFloat32", 76, 1, ...spacing(), 0, 0, 0, 0);
  put("setFloat32", 108, 352, 1, 0); // where the values begin, slope, intercept
  put("setUint8", 123, 2); // mm
  put("setInt16", 254, 1); // scanner coordinates
  put("setFloat32", 280, ...shown.affine.slice(0, 3).flat());
  put("setUint8", 344, ...[..."n+1\0"].map((letter) => letter.charCodeAt(0)));
  const values = new Float32Array(content, 352);
  const error = (index) => valueAt(volume, index) - valueAt(shown.reference, index);
  const value = { absolute: (index) => Math.abs(error(index)), signed: error }[kind] ?? ((index) => valueAt(volume, index));
  for (let index = 0; index < values.length; index++) values[index] = value(index);
  return content;
}

// --------------------------------------------------------------------------------------------------------- the address

/** What is shown, in the address, so that a link leads to the same place. */
function writeAddress() {
  const { left, right, position, level, width, zoom, divider } = view;
  const place = { case: cases.indexOf(shown), left, right, at: position, window: [level, width], zoom, divider };
  history.replaceState(null, "", `#${new URLSearchParams(place)}`);
}

async function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const numbers = (name, count) => {
    const values = (given.get(name) ?? "").split(",").map(Number);
    return given.get(name) && values.length === count && values.every(Number.isFinite) ? values : null;
  };
  const chosen = cases[given.get("case")] ?? cases[0];
  byId("case").value = cases.indexOf(chosen);
  await showCase(chosen);
  for (const side of ["left", "right"]) if (choice(given.get(side))) view[side] = given.get(side);
  buildChoices();
  numbers("at", 3)?.forEach((place, axis) => move(axis, place));
  if (numbers("window", 2)?.[1] > 0) setWindow(...numbers("window", 2));
  if (numbers("divider", 1)) setDivider(...numbers("divider", 1));
  if (numbers("zoom", 1)) setZoom(numbers("zoom", 1)[0], { ...view.position });
  draw();
}

function buildTools() {
  byId("tools").append(...Object.keys(TOOLS).map((name) =>
    element("button", { type: "button", value: name, click: () => setTool(name) }, name)));
  setTool("Crosshair");
  byId("zoom").addEventListener("input", () => setZoom(2 ** byId("zoom").valueAsNumber, { ...view.position }));
  byId("all").addEventListener("toggle", drawAll);
  byId("save-picture").addEventListener("click", async () =>
    save(fileName(shown.volume, ".png"), "image/png", await picture()));
  byId("save-volume").addEventListener("click", () => {
    const what = choice(view.right);
    save(fileName(shown.volume, what.label, ".nii"), "application/octet-stream", nifti(what));
  });
}
