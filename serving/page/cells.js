/** Cells in colours over the part of the photo that the model sees, with a scale and a sentence below the photo. */

import { element } from "./dom.js";
import { visibleRegion } from "./model.js";
import { clearOverlay, showOverlay } from "./overlay.js";
import { asSentence, errorInWords } from "./words.js";

const NO_PHOTO = "Nothing is drawn, as this browser cannot display the photo.";
const WHOLE = { left: 0, top: 0, width: 1, height: 1 };

const byId = (id) => document.getElementById(id);

/**
 * Draws a picture, {kind, height, width, colours, description, note, scale, chosen}, over the photo that was asked about
 * with `context`: height x width cells, row after row as colours [red, green, blue, opacity from 0 to 1]. `kind` is a class
 * of the style sheet; `description` says what they show, `note` what it means; `scale` {background, low, high} is a
 * background as CSS writes it and the figures at its ends. `chosen` {row, column} is marked, where given.
 */
export function showCells(picture, context) {
  const { details, announce } = context;
  const { kind, height, width, colours, description, note, scale, chosen = null } = picture;
  if (byId("photo-frame").hidden) return sayNote(`${note} ${NO_PHOTO}`, false, announce);
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
  sayNote(note, true, announce);
}

/** Says in a sentence why there are no cells; what else was found stays. A key that is wrong by now is asked for anew. */
export function showTrouble(error, { announce, fail }) {
  if (error.status === 401) return fail(error);
  clearOverlay();
  const { what, advice } = errorInWords(error, "photo");
  sayNote(asSentence(`${what} ${advice}`.trim()), false, announce);
}

/** Puts `node` where it covers `shares` {left, top, width, height} of what it lies over. */
export function place(node, shares) {
  for (const [side, share] of Object.entries(shares)) node.style[side] = `${100 * share}%`;
}

/** A number of few digits with a true minus. */
export function figure(value, digits = 2) {
  return Number(value.toFixed(digits)).toFixed(digits).replace("-", "−"); // and 0 has none
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

function sayNote(sentence, withScale, announce) {
  announce(sentence);
  byId("cells-note").textContent = sentence;
  byId("cells-range").hidden = !withScale;
  byId("cells-key").hidden = false;
  byId("cells-key").scrollIntoView({ block: "nearest" });
  byId("photo-frame").scrollIntoView({ block: "nearest" });
}
