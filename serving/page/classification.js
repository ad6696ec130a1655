/** Classification: the best classes, and the feature levels behind them as pictures. */

import { classifyPath, featuresPath, postPhoto, serverTimings } from "./client.js";
import { principalComponents, toPixels } from "./components.js";
import { element } from "./dom.js";
import { featureLevels } from "./model.js";
import { percent, resultRow, showPendingRows, showRows, showTimings } from "./results.js";
import { parseSafetensors } from "./tensors.js";

const TOP_K = 5;
const SAFETENSORS = "application/x-safetensors";

const byId = (id) => document.getElementById(id);

export const classification = {
  title: "Classify a photo",
  lead: "Its most likely classes, and the four feature levels behind them.",
  heading: "Prediction",

  placeholders(details) {
    const levels = details ? featureLevels(details) : [];
    showPendingRows(details ? topK(details) : TOP_K);
    byId("maps").replaceChildren(
      ...levels.map(() =>
        element("figure", { class: "pending", "aria-hidden": "true" }, element("div", { class: "map" })),
      ),
    );
  },

  /** Resolves to {sentence, commands} once everything is shown. */
  async ask(context) {
    const { details, model } = context;
    const [predictions, levels] = await Promise.all([classify(context), extract(context)]);
    const commands = [{ title: "Classes", path: classifyPath(topK(details), model) }];
    if (levels.length > 0) {
      const path = featuresPath(levels, model);
      commands.push({ title: "Feature levels", path, accept: SAFETENSORS, output: "features.safetensors" });
    }
    const [best] = predictions;
    return { sentence: `${best.label}, ${percent(best.score)}. ${levels.length} feature levels shown.`, commands };
  },
};

function topK(details) {
  return Math.min(TOP_K, details.labels?.length || TOP_K);
}

async function classify({ photo, details, model, signal }) {
  const started = performance.now();
  const response = await postPhoto(classifyPath(topK(details), model), photo, "application/json", signal);
  const predictions = await response.json();
  if (signal.aborted) return predictions;
  showRows(predictions.map(({ label, score }) => resultRow(label, score)));
  showTimings(serverTimings(response), performance.now() - started);
  return predictions;
}

async function extract({ photo, details, model, signal }) {
  const levels = featureLevels(details);
  if (levels.length === 0) return [];
  const names = levels.map(({ name }) => name);
  const response = await postPhoto(featuresPath(names, model), photo, SAFETENSORS, signal);
  const tensors = parseSafetensors(await response.arrayBuffer());
  const figures = [];
  for (const level of levels) {
    if (signal.aborted) return [];
    figures.push(mapFigure(level, tensors.get(level.name)));
    // The components of a large model's maps take a while: let the browser paint and react between two levels.
    await new Promise((resolve) => setTimeout(resolve));
  }
  if (!signal.aborted) byId("maps").replaceChildren(...figures);
  return names;
}

/** One level as a picture with its caption; `tensor` is {shape: [1, C, H, W], data}. */
function mapFigure({ name, stride }, tensor) {
  if (!tensor) throw new Error(`The server's answer lacks the feature level ${name}.`);
  const [, channels, height, width] = tensor.shape;
  const { scores, variances, total } = principalComponents(tensor.data, channels, height * width);
  const explained = total > 0 ? variances.reduce((sum, variance) => sum + variance, 0) / total : 0;
  const label = `Feature level ${name}: ${height} by ${width} cells as colours`;
  const canvas = element("canvas", {
    class: "map",
    width,
    height,
    role: "img",
    "aria-label": label,
    "data-level": name,
  });
  canvas.getContext("2d").putImageData(new ImageData(toPixels(scores), width, height), 0, 0);
  return element(
    "figure",
    {},
    canvas,
    element(
      "figcaption",
      {},
      element("span", { class: "caption" }, element("strong", {}, name), `, stride ${stride}`),
      element("span", { class: "shape" }, `${channels} × ${height} × ${width}`),
      element("span", { class: "shape" }, `${(100 * explained).toFixed(0)} % of variance shown`),
    ),
  );
}
