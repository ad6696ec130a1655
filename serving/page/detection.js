/** Detection: objects with their boxes and masks on the photo, and a list of them. */

import { detectPath, postPhoto, serverTimings } from "./client.js";
import { classColour, textColour } from "./colours.js";
import { element } from "./dom.js";
import { readLabel } from "./labels.js";
import { paintMasks, showOverlay } from "./overlay.js";
import { css, percent, resultRow, showPendingRows, showRows, showTimings } from "./results.js";
import { decodeRunLengths } from "./run_lengths.js";

const PENDING_ROWS = 4;
const MAX_ROWS = 12; // objects listed; all of them are on the photo
const MASK_OPACITY = 0.45;

export const detection = {
  title: "Find objects in a photo",
  lead: "What is in it and where: boxes and masks, drawn on the photo.",
  heading: "Objects",
  hasThreshold: true,
  looksAtScenes: true,

  placeholders() {
    showPendingRows(PENDING_ROWS);
  },

  /** Resolves to {sentence, commands} once everything is shown. */
  async ask({ photo, details, model, threshold, signal }) {
    const started = performance.now();
    const path = detectPath(threshold, "rle", model);
    const response = await postPhoto(path, photo, "application/json", signal);
    const objects = await response.json();
    if (!signal.aborted) {
      showObjects(objects, details.labels, threshold);
      showTimings(serverTimings(response), performance.now() - started);
    }
    const commands = [
      {
        title: "Objects",
        path: detectPath(threshold, null, model),
        huggingFace: { method: "object_detection", options: { threshold } },
      },
      { title: "Objects with masks", path, output: "objects.json" },
    ];
    return { sentence: inWords(objects), commands };
  },
};

function inWords(objects) {
  if (objects.length === 0) return "Nothing found.";
  const count = objects.length === 1 ? "1 object" : `${objects.length} objects`;
  return `${count}; the surest is ${readLabel(objects[0].label).name}, ${percent(objects[0].score)}.`;
}

function showObjects(objects, labels, threshold) {
  const colourOf = ({ label }) => classColour(labels.indexOf(label));
  const rows = objects.slice(0, MAX_ROWS).map((item) => resultRow(item.label, item.score, { colour: colourOf(item) }));
  const rest = objects.length - rows.length;
  if (rest > 0) rows.push(element("li", { class: "more" }, `and ${rest} more, drawn on the photo`));
  if (rows.length === 0) {
    rows.push(element("li", { class: "more" }, `Nothing found with a score of at least ${percent(threshold)}`));
  }
  showRows(rows);
  if (objects.length === 0) return;
  const [height, width] = objects[0].mask.size;
  const canvas = paintMasks(
    height,
    width,
    objects.map((item) => ({
      runs: decodeRunLengths(item.mask.counts),
      region: item.box,
      colour: colourOf(item),
      opacity: MASK_OPACITY,
    })),
  );
  const boxes = objects.map((item) => boxElement(item, height, width, colourOf(item)));
  showOverlay(canvas, boxes.reverse(), inWords(objects)); // the best last, on top
}

/** A box in percent of the photo, with the object's name and score at its top. */
function boxElement({ label, score, box }, height, width, colour) {
  const tag = element("span", { class: "tag" }, `${readLabel(label).name} ${(100 * score).toFixed(0)} %`);
  tag.style.background = css(colour);
  tag.style.color = textColour(colour);
  const node = element("div", { class: "box", "data-label": label }, tag);
  node.style.left = `${(100 * box.xmin) / width}%`;
  node.style.top = `${(100 * box.ymin) / height}%`;
  node.style.width = `${(100 * (box.xmax - box.xmin)) / width}%`;
  node.style.height = `${(100 * (box.ymax - box.ymin)) / height}%`;
  node.style.borderColor = css(colour);
  // Tags grow to the left in the right half, so that they stay on the photo.
  node.classList.toggle("from-right", box.xmin > width / 2);
  return node;
}
