/** Features of a model without a head: its levels as pictures, and its pooled vector in figures. */

import { featuresPath, serverTimings } from "./client.js";
import { SAFETENSORS, levelsCommand, showLevels, showPendingLevels } from "./levels.js";
import { showPendingRows, showRows, showTimings, textRow } from "./results.js";
import { VIDEO_TYPES } from "./video.js";

const POOLED = "pooled";

export const features = {
  title: "Look at the features of a photo",
  lead: "The four levels of the encoder as pictures, and the pooled vector for search and comparison.",
  heading: "Pooled vector",
  hasLevels: true,

  placeholders(details) {
    showPendingRows(2);
    if (details) showPendingLevels(details);
  },

  /** Resolves to {sentence, commands} once everything is shown. */
  async ask(context) {
    const { details, model, signal } = context;
    const started = performance.now();
    const { tensors, response } = await showLevels(context, [POOLED]);
    const vector = tensors.get(POOLED).data;
    const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
    if (!signal.aborted) {
      showRows([textRow("Values", String(vector.length)), textRow("Length (Euclidean)", length.toFixed(3))]);
      showTimings(serverTimings(response), performance.now() - started);
    }
    const commands = [
      {
        title: "Pooled vector",
        path: featuresPath([POOLED], model),
        accept: SAFETENSORS,
        output: "pooled.safetensors",
        huggingFace: { method: "feature_extraction", encoded: true },
      },
      levelsCommand(details, model),
    ];
    return { sentence: `A vector of ${vector.length} values and length ${length.toFixed(3)}.`, commands };
  },
};

export const videoFeatures = {
  ...features,
  title: "Look at the features of a video",
  lead: "The four levels of the encoder as pictures, in the middle of the clip, and the pooled vector.",
  medium: "video",
  accept: VIDEO_TYPES,
};
