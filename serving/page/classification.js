/** Classification: the best classes, and the feature levels behind them as pictures. */

import { classifyPath, postPhoto, serverTimings } from "./client.js";
import { readLabel } from "./labels.js";
import { levelsCommand, showLevels, showPendingLevels } from "./levels.js";
import { featureLevels } from "./model.js";
import { percent, resultRow, showPendingRows, showRows, showTimings } from "./results.js";

const TOP_K = 5;

export const classification = {
  title: "Classify a photo",
  lead: "Its most likely classes, and the four feature levels behind them.",
  heading: "Prediction",

  hasLevels: true,

  placeholders(details) {
    showPendingRows(details ? topK(details) : TOP_K);
    if (details) showPendingLevels(details);
  },

  /** Resolves to {sentence, commands} once everything is shown. */
  async ask(context) {
    const { details, model } = context;
    const [predictions] = await Promise.all([classify(context), showLevels(context)]);
    const huggingFace = { method: "image_classification", options: { top_k: topK(details) } };
    const commands = [{ title: "Classes", path: classifyPath(topK(details), model), huggingFace }];
    const levels = featureLevels(details);
    if (levels.length > 0) commands.push(levelsCommand(details, model));
    const [best] = predictions;
    const { name } = readLabel(best.label);
    return { sentence: `${name}, ${percent(best.score)}. ${levels.length} feature levels shown.`, commands };
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
