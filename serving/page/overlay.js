/** What lies over the photo: colours of masks on a canvas, and boxes. */

import { maskOf } from "./run_lengths.js";

const MAX_SIDE = 1280; // pixels of the canvas: more than the photo takes on any screen

let current = null; // {gone} of what has the photo, where it wants to know

const byId = (id) => document.getElementById(id);

/**
 * A canvas of the photo's shape with each mask in its colour, the first on top.
 *
 * Args: height and width of the photo; masks as {runs, colour, opacity, region}, where region {xmin, ymin, xmax, ymax}
 * in pixels of the photo bounds the mask, and may be left out.
 */
export function paintMasks(height, width, masks) {
  const scale = Math.min(1, MAX_SIDE / Math.max(height, width));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (const { runs, colour, opacity, region } of [...masks].reverse()) {
    const mask = maskOf(runs, height, width);
    const { xmin = 0, ymin = 0, xmax = width, ymax = height } = region ?? {};
    const [left, right] = bounds(xmin, xmax, canvas.width / width, canvas.width);
    const [top, bottom] = bounds(ymin, ymax, canvas.height / height, canvas.height);
    for (let x = left; x < right; x++) {
      const column = Math.floor(((x + 0.5) * width) / canvas.width) * height;
      for (let y = top; y < bottom; y++) {
        if (!mask[column + Math.floor(((y + 0.5) * height) / canvas.height)]) continue;
        const at = 4 * (y * canvas.width + x);
        [image.data[at], image.data[at + 1], image.data[at + 2]] = colour;
        image.data[at + 3] = 255 * opacity;
      }
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Puts a canvas and boxes over the photo; `description` says in words what they show. */
export function showOverlay(canvas, boxes, description) {
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", description);
  byId("overlay").replaceChildren(canvas, ...boxes);
  byId("overlay-choice").hidden = false;
}

/**
 * Empties the photo for what is to come, which then shows. `gone` is called when something else takes its place; the
 * function that this gives says whether that has not happened yet.
 */
export function takeOverlay(gone) {
  clearOverlay();
  const turn = { gone };
  current = turn;
  byId("overlay-shown").checked = true;
  byId("overlay").hidden = false;
  return () => current === turn;
}

export function clearOverlay() {
  current?.gone();
  current = null;
  byId("overlay").replaceChildren();
  byId("overlay-choice").hidden = true;
  byId("cells-key").hidden = true;
}

function bounds(low, high, scale, side) {
  return [Math.max(0, Math.floor(low * scale)), Math.min(side, Math.ceil(high * scale))];
}
