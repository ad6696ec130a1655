/** Classification: the best classes, what speaks for each, and the feature levels behind them as pictures. */

import { classifyPath, explainPath, postPhoto, serverTimings } from "./client.js";
import { explainedRows } from "./explanation.js";
import { readLabel } from "./labels.js";
import { levelsCommand, showLevels, showPendingLevels } from "./levels.js";
import { featureLevels } from "./model.js";
import { percent, showPendingRows, showRows, showTimings } from "./results.js";

const TOP_K = 5;

export const classification = {
  title: "Classify a photo",
  lead: "Its likeliest classes, why each, and the four feature levels behind them.",
  heading: "Prediction",
  choosesAmongClasses: true,
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
    const commands = [
      { title: "Classes", path: classifyPath(topK(details), model), huggingFace },
      {
        title: "Why the likeliest, as a picture",
        path: explainPath(null, model),
        accept: "image/png",
        output: "why.png",
      },
    ];
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

async function classify(context) {
  const { photo, details, model, signal } = context;
  const started = performance.now();
  const path = `${classifyPath(topK(details), model)}&indices=true`;
  const response = await postPhoto(path, photo, "application/json", signal);
  const predictions = await response.json();
  if (signal.aborted) return predictions;
  showRows(explainedRows(predictions, context));
  showTimings(serverTimings(response), performance.now() - started);
  return predictions;
}
