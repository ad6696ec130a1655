/** Segmentation: the photo under the colours of what its pixels are, with a legend. */

import { postPhoto, segmentPath, serverTimings } from "./client.js";
import { classColour } from "./colours.js";
import { readLabel } from "./labels.js";
import { paintMasks, showOverlay } from "./overlay.js";
import { percent, resultRow, showPendingRows, showRows, showTimings } from "./results.js";
import { areaOf, decodeRunLengths } from "./run_lengths.js";

const PENDING_ROWS = 5;
const OPACITY = 0.6;

export const segmentation = {
  title: "Segment a photo",
  lead: "What each of its pixels shows, as colours on the photo.",
  heading: "What it shows",
  looksAtScenes: true,

  placeholders() {
    showPendingRows(PENDING_ROWS);
  },

  /** Resolves to {sentence, commands} once everything is shown. */
  async ask({ photo, details, model, signal }) {
    const started = performance.now();
    const response = await postPhoto(segmentPath("rle", model), photo, "application/json", signal);
    const segments = await response.json();
    const shown = segments.map(({ label, mask }) => {
      const runs = decodeRunLengths(mask.counts);
      const share = areaOf(runs) / (mask.size[0] * mask.size[1]);
      return { label, runs, share, colour: classColour(details.labels.indexOf(label)), opacity: OPACITY };
    });
    if (!signal.aborted && segments.length > 0) {
      showRows(shown.map(({ label, share, colour }) => resultRow(label, share, { colour })));
      showTimings(serverTimings(response), performance.now() - started);
      const [height, width] = segments[0].mask.size;
      showOverlay(paintMasks(height, width, shown), [], `Colours of ${shown.map(nameOf).join(", ")}`);
    }
    const commands = [
      {
        title: "Segments with masks",
        path: segmentPath(null, model),
        output: "segments.json",
        huggingFace: { method: "image_segmentation" },
      },
      { title: "Labels as a picture", path: segmentPath(null, model), accept: "image/png", output: "labels.png" },
    ];
    const names = shown.slice(0, 3).map((segment) => `${nameOf(segment)} ${percent(segment.share)}`);
    return { sentence: `${names.join(", ")}.`, commands };
  },
};

function nameOf({ label }) {
  return readLabel(label).name;
}
