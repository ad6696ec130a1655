/**
 * Feature levels as pictures: the first three principal components of a map, which the server computes, as red, green
 * and blue.
 */

import { featuresPath, postPhoto } from "./client.js";
import { element } from "./dom.js";
import { featureLevels } from "./model.js";
import { similarityButton } from "./similarity.js";
import { parseSafetensors } from "./tensors.js";

export const SAFETENSORS = "application/x-safetensors";
const COMPONENTS = 3;

const byId = (id) => document.getElementById(id);

/** Grey squares in the places of the pictures. */
export function showPendingLevels(details) {
  byId("maps").replaceChildren(
    ...featureLevels(details).map(() =>
      element("figure", { class: "pending", "aria-hidden": "true" }, element("div", { class: "map" })),
    ),
  );
}

/**
 * Asks for the levels, and for the vectors `others` with them, and shows a picture of each level; resolves to
 * {tensors, response}, where tensors is a Map from a name to {shape, data}.
 */
export async function showLevels(context, others = []) {
  const { photo, details, model, signal } = context;
  const levels = featureLevels(details);
  const names = [...levels.map(({ name }) => name), ...others];
  if (names.length === 0) return { tensors: new Map(), response: null };
  const response = await postPhoto(featuresPath(names, model, COMPONENTS), photo, SAFETENSORS, signal);
  const tensors = parseSafetensors(await response.arrayBuffer());
  for (const name of names) if (!tensors.has(name)) throw new Error(`The server's answer lacks the feature ${name}.`);
  if (!signal.aborted) byId("maps").replaceChildren(...levels.map((level) => levelFigure(level, tensors, context)));
  return { tensors, response };
}

/** The command that writes the maps themselves. */
export function levelsCommand(details, model) {
  const path = featuresPath(featureLevels(details).map(({ name }) => name), model);
  return { title: "Feature levels", path, accept: SAFETENSORS, output: "features.safetensors" };
}

/** One level as a picture with its caption; of a video's slots of time the one in the middle. */
function levelFigure({ name, stride, shape }, tensors, context) {
  const [height, width] = shape.slice(-2);
  const slots = shape.length > 3 ? shape[1] : 1;
  const slot = Math.floor(slots / 2);
  const label = `Feature level ${name}: ${height} by ${width} cells as colours`;
  const canvas = element("canvas", { class: "map", width, height, role: "img", "aria-label": label, "data-level": name });
  const cells = height * width;
  const pixels = toPixels(tensors.get(name).data, slots * cells).subarray(4 * slot * cells, 4 * (slot + 1) * cells);
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  const explained = tensors.get(`${name}.shares`).data.reduce((sum, share) => sum + share, 0);
  return element(
    "figure",
    {},
    slots === 1 ? similarityButton(canvas, { name, shape }, context) : canvas,
    element(
      "figcaption",
      {},
      element("span", { class: "caption" }, element("strong", {}, name), `, stride ${stride}`),
      element("span", { class: "shape" }, shape.join(" × ")),
      slots > 1 ? element("span", { class: "shape" }, `slot ${slot + 1} of ${slots} shown`) : null,
      element("span", { class: "shape" }, `${(100 * explained).toFixed(0)} % of variance shown`),
    ),
  );
}

/**
 * Three components of `cells` values each, one after the other, as RGBA bytes: each stretched so that its 1st and 99th
 * percentiles become 0 and 255. A component without variation is mid-grey.
 */
export function toPixels(components, cells) {
  const pixels = new Uint8ClampedArray(cells * 4).fill(255);
  for (let band = 0; band < COMPONENTS; band++) {
    const values = components.subarray(band * cells, (band + 1) * cells);
    const sorted = Float64Array.from(values).sort();
    const low = percentile(sorted, 0.01);
    const range = percentile(sorted, 0.99) - low;
    for (let cell = 0; cell < cells; cell++) {
      pixels[cell * 4 + band] = range > 0 ? (255 * (values[cell] - low)) / range : 128;
    }
  }
  return pixels;
}

/** The value at `share` of a sorted array, linear between neighbours. */
function percentile(sorted, share) {
  const position = share * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
}
