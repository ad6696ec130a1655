/** Classification of videos: the best classes. */

import { classifyVideoPath, postPhoto, serverTimings } from "./client.js";
import { readLabel } from "./labels.js";
import { percent, resultRow, showPendingRows, showRows, showTimings } from "./results.js";

export const VIDEO_TYPES = "video/*,image/gif,.mkv,.avi,.ts,.flv,.wmv,.ogv";
const TOP_K = 5;
const VIEWS = { temporal: 2, spatial: 3 }; // of the second command

export const video = {
  title: "Classify a video",
  lead: "What happens in it: its most likely classes.",
  heading: "Prediction",
  choosesAmongClasses: true,
  medium: "video",
  accept: VIDEO_TYPES,

  placeholders(details) {
    showPendingRows(details ? topK(details) : TOP_K);
  },

  /** Resolves to {sentence, commands} once everything is shown. */
  async ask({ photo, details, model, signal }) {
    const started = performance.now();
    const path = classifyVideoPath(topK(details), null, model);
    const response = await postPhoto(path, photo, "application/json", signal);
    const predictions = await response.json();
    if (!signal.aborted) {
      showRows(predictions.map(({ label, score }) => resultRow(label, score)));
      showTimings(serverTimings(response), performance.now() - started);
    }
    const commands = [
      { title: "Classes", path, huggingFace: { method: "image_classification", options: { top_k: topK(details) } } },
      {
        title: `Classes, averaged over ${VIEWS.temporal} × ${VIEWS.spatial} views`,
        path: classifyVideoPath(topK(details), VIEWS, model),
      },
    ];
    const [best] = predictions;
    return { sentence: `${readLabel(best.label).name}, ${percent(best.score)}.`, commands };
  },
};

function topK(details) {
  return Math.min(TOP_K, details.labels?.length || TOP_K);
}
