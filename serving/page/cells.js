/** Cells in colours over the part of the photo that the model sees, with a scale and a sentence below the photo. */

import { element } from "./dom.js";
import { visibleRegion } from "./model.js";
import { clearOverlay, showOverlay } from "./overlay.js";
import { errorInWords } from "./words.js";

const WHOLE = { left: 0, top: 0, width: 1, height: 1 };

const byId = (id) => document.getElementById(id);

/**
 * Draws a picture, {kind, height, width, colours, description, note, scale, chosen}, over the photo that was asked about with
 * `context`: of height x width cells, row after row as colours [red, green, blue, opacity]. `kind` is for the style sheet;
 * `description` says what they show in words, `note` what they mean; `scale` {background, low, high} is a background as
 * CSS writes it and the figures at its ends. `chosen` {row, column} is marked, where given.
 */
export function showCells(picture, context) {
  const { details, announce } = context;
  const { kind, height, width, colours, description, note, scale, chosen = null } = picture;
  const canvas = element("canvas", { class: `cells ${kind}`, width, height });
  const image = canvas.getContext("2d").createImageData(width, height);
  colours.forEach(([red, green, blue, opacity], at) => image.data.set([red, green, blue, 255 * opacity], 4 * at));
  canvas.getContext("2d").putImageData(image, 0, 0);
  const photo = byId("preview");
  const region = visibleRegion(photo.naturalWidth, photo.naturalHeight, details.preprocessing) ?? WHOLE;
  place(canvas, region);
  showOverlay(canvas, chosen ? [chosenMark(chosen, height, width, region)] : [], description);
  byId("cells-scale").style.background = scale.background;
  byId("cells-low").textContent = scale.low;
  byId("cells-high").textContent = scale.high;
  showNote(note, true);
  announce(note);
}

/** Says in a sentence why there are no cells; what else was found stays. A key that is wrong by now is asked for anew. */
export function showTrouble(error, { announce, fail }) {
  if (error.status === 401) return fail(error);
  clearOverlay();
  const { what, advice } = errorInWords(error, "photo");
  const sentence = `${what} ${advice}`.trim();
  showNote(sentence, false);
  announce(sentence);
}

/** Puts `node` where it covers `shares` {left, top, width, height} of what it lies over. */
export function place(node, shares) {
  for (const [side, share] of Object.entries(shares)) node.style[side] = `${100 * share}%`;
}

/** A number of few digits with a true minus. */
export function figure(value, digits = 2) {
  return value.toFixed(digits).replace("-", "−");
}

function chosenMark({ row, column }, height, width, region) {
  const mark = element("span", { class: "cell" });
  place(mark, {
    left: region.left + (region.width * column) / width,
    top: region.top + (region.height * row) / height,
    width: region.width / width,
    height: region.height / height,
  });
  return mark;
}

function showNote(sentence, withScale) {
  byId("cells-note").textContent = sentence;
  byId("cells-range").hidden = !withScale;
  byId("cells-key").hidden = false;
  byId("cells-key").scrollIntoView({ block: "nearest" });
  byId("photo-frame").scrollIntoView({ block: "nearest" });
}
