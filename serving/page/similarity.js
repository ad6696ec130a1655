/** Where a feature level is similar to one of its cells: the cosine of the cells' vectors, as colours over the photo. */

import { featuresPath, postPhoto } from "./client.js";
import { figure, place, showCells, showTrouble } from "./cells.js";
import { element } from "./dom.js";
import { takeOverlay } from "./overlay.js";
import { css } from "./results.js";

const OPACITY = 0.72;
const STOPS = [
  [12, 8, 38],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
]; // from unlike to like, ever brighter

/**
 * A button around the picture of a level, whose cells can be chosen: by a click, or with the arrow keys and Enter. The
 * level's vectors are fetched with the first choice. `context` is what the level was asked with.
 */
export function similarityButton(canvas, { name, shape }, context) {
  const [, height, width] = shape;
  const mark = element("span", { class: "cell", hidden: true });
  const label = `Feature level ${name}, ${height} by ${width} cells: arrow keys choose a cell, Enter shows what is like it`;
  const button = element("button", { type: "button", class: "map-button", "aria-label": label }, canvas, mark);
  const cell = { row: Math.floor(height / 2), column: Math.floor(width / 2) };
  let loading = null;
  let vectors = null;

  const choose = async () => {
    const isShown = takeOverlay(() => (mark.hidden = true));
    placeMark(mark, cell, height, width);
    try {
      loading ??= fetchVectors(name, shape, context);
      vectors = await loading;
      if (isShown()) showCells(picture(vectors, { name, height, width, ...cell }), context);
    } catch (error) {
      loading = null;
      if (isShown() && !context.signal.aborted) showTrouble(error, context);
    }
  };
  button.addEventListener("click", (event) => {
    if (event.detail > 0) {
      const { left, top, width: wide, height: high } = canvas.getBoundingClientRect();
      cell.column = Math.min(width - 1, Math.max(0, Math.floor(((event.clientX - left) / wide) * width)));
      cell.row = Math.min(height - 1, Math.max(0, Math.floor(((event.clientY - top) / high) * height)));
    }
    choose();
  });
  button.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    cell.row = Math.min(height - 1, Math.max(0, cell.row + down));
    cell.column = Math.min(width - 1, Math.max(0, cell.column + right));
    placeMark(mark, cell, height, width);
    context.announce(`Row ${cell.row + 1}, column ${cell.column + 1}`);
    if (vectors) choose(); // what is like it follows the keys once it is there
  });
  return button;
}

/** The vectors of a level, (channels, cells) one channel after the other, and how many bytes they came in. */
async function fetchVectors(name, [channels, height, width], { photo, model, signal }) {
  const path = featuresPath([name], model, null, "f16");
  const response = await postPhoto(path, photo, "application/octet-stream", signal);
  const buffer = await response.arrayBuffer();
  const values = halfFloats(buffer);
  if (values.length !== channels * height * width) {
    throw new Error(`The level ${name} came with ${values.length} values in place of ${channels * height * width}.`);
  }
  return { values, bytes: buffer.byteLength };
}

/** What `showCells` draws of the likeness to a cell. */
function picture({ values, bytes }, { name, height, width, row, column }) {
  const likeness = similarities(values, height * width, row * width + column);
  const lowest = Math.min(...likeness);
  const colours = Array.from(likeness, (value) => [...heat(lowest < 1 ? (value - lowest) / (1 - lowest) : 1), OPACITY]);
  const description = `Level ${name}, row ${row + 1}, column ${column + 1}: the brighter, the more alike`;
  const size = bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  const background = `linear-gradient(90deg, ${STOPS.map((stop) => css(stop)).join(", ")})`;
  return {
    kind: "likeness",
    height,
    width,
    colours,
    description,
    note: `${description}. Cosine from ${figure(lowest)} to 1; ${size} fetched for this level.`,
    scale: { background, low: figure(lowest), high: "1" },
    chosen: { row, column },
  };
}

/** Marks of other levels go, and this one shows. */
function placeMark(mark, { row, column }, height, width) {
  for (const other of document.querySelectorAll("#maps .cell")) other.hidden = true;
  place(mark, { left: column / width, top: row / height, width: 1 / width, height: 1 / height });
  mark.hidden = false;
}

/** The cosine of each cell's vector to that of `cell`; `values` is (channels, cells). A vector of zeros is like none. */
export function similarities(values, cells, cell) {
  const products = new Float64Array(cells);
  const squares = new Float64Array(cells);
  for (let start = 0; start < values.length; start += cells) {
    const own = values[start + cell];
    for (let at = 0; at < cells; at++) {
      const value = values[start + at];
      products[at] += own * value;
      squares[at] += value * value;
    }
  }
  return products.map((product, at) => product / (Math.sqrt(squares[at] * squares[cell]) || 1));
}

/** Little-endian numbers of 16 bits as numbers of 32. */
export function halfFloats(buffer) {
  const bits = new Uint16Array(buffer); // every machine with a browser is little-endian
  return Float32Array.from(bits, (half) => {
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    const size =
      exponent === 0
        ? fraction * 2 ** -24
        : exponent === 31
          ? fraction ? NaN : Infinity
          : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return half & 0x8000 ? -size : size;
  });
}

/** [red, green, blue] of a likeness from 0 to 1. */
export function heat(likeness) {
  const place = Math.max(0, Math.min(1, likeness)) * (STOPS.length - 1);
  const below = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[below].map((value, band) => Math.round(value + (STOPS[below + 1][band] - value) * (place - below)));
}
