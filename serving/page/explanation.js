/** Why this class: what each cell of the photo adds to the logit of a class, as colours over the photo. */

import { figure, showCells, showTrouble } from "./cells.js";
import { explainPath, postPhoto } from "./client.js";
import { element } from "./dom.js";
import { readLabel } from "./labels.js";
import { clearOverlay, takeOverlay } from "./overlay.js";
import { css, resultRow } from "./results.js";
import { asSentence } from "./words.js";

const FOR = [230, 97, 1]; // orange; colours and opacity as in the pictures that `convmae predict` draws
const AGAINST = [45, 90, 200]; // blue
const GREY = [136, 136, 136]; // a photo without colours, as it is while these show
const OPACITY = 0.75; // of the cell that adds or takes most

/**
 * A row for each of `predictions` [{label, score, index}], which shows what speaks for its class when it is pressed, and
 * hides it when it is pressed again. What the server says is fetched once for each class.
 */
export function explainedRows(predictions, context) {
  const fetched = new Map(); // by the index of the class
  return predictions.map(({ label, score, index }) => {
    const name = `Why ${readLabel(label).name}?`;
    const attributes = { type: "button", class: "copy why", "aria-pressed": "false", "aria-label": name };
    const button = element("button", attributes, "why?");
    const row = resultRow(label, score, { button });
    row.addEventListener("click", async () => {
      if (button.getAttribute("aria-pressed") === "true") {
        clearOverlay();
        return context.announce("Hidden");
      }
      const isShown = takeOverlay(() => button.setAttribute("aria-pressed", "false"));
      button.setAttribute("aria-pressed", "true");
      try {
        if (!fetched.has(index)) fetched.set(index, fetchExplanation(label, index, context));
        const explanation = await fetched.get(index);
        if (isShown()) showCells(picture(explanation), context);
      } catch (error) {
        fetched.delete(index);
        if (isShown() && !context.signal.aborted) showTrouble(error, context);
      }
    });
    return row;
  });
}

/** A class is asked for by its name where no other has it, as a name may be a number too, and by its index otherwise. */
async function fetchExplanation(label, index, { photo, details, model, signal }) {
  const alone = details.labels.filter((other) => other === label).length === 1;
  const path = explainPath(alone ? label : index, model);
  const explanation = await (await postPhoto(path, photo, "application/json", signal)).json();
  if (explanation.index !== index) throw new Error(`The server explained another class than ${label}.`);
  return explanation;
}

/** What `showCells` draws of the server's answer. */
export function picture({ label, logit, bias, contributions, meaning, note }) {
  const values = contributions.flat();
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const largest = Math.max(-low, high) || 1;
  const colourOf = (value) => [...(value > 0 ? FOR : AGAINST), (OPACITY * Math.abs(value)) / largest];
  const [height, width] = [contributions.length, contributions[0].length];
  const most = values.indexOf(high);
  const { name } = readLabel(label);
  return {
    kind: "contributions",
    height,
    width,
    colours: values.map(colourOf),
    description:
      `What ${height} by ${width} cells add to ${name}, from ${signed(low)} to ${signed(high)}, ` +
      `most in row ${Math.floor(most / width) + 1}, column ${(most % width) + 1}`,
    note: [
      `${sides(low, high, name)}: logit\u00a0${figure(logit)} =\u00a0${figure(logit - bias)} of the cells ` +
        `${figure(bias).startsWith("−") ? "−" : "+"}\u00a0${figure(Math.abs(bias))}\u00a0bias`,
      meaning,
      note,
    ]
      .filter(Boolean)
      .map(asSentence)
      .join(" "),
    scale: { background: gradient(low, high, colourOf), low: signed(low), high: signed(high) },
  };
}

/** What the colours mean, of which there may be one. */
function sides(low, high, name) {
  if (low >= 0) return `Orange cells speak for ${name}, none against`;
  if (high <= 0) return `Blue cells speak against ${name}, none for it`;
  return `Orange cells speak for ${name}, blue ones against`;
}

/** The colours from the lowest value to the highest; at zero there is none. */
function gradient(low, high, colourOf) {
  const stops = [low, ...(low < 0 && high > 0 ? [0] : []), high];
  const written = stops.map((value) => {
    const [red, green, blue, opacity] = colourOf(value);
    return `${css([red, green, blue], opacity)} ${high > low ? (100 * (value - low)) / (high - low) : 0}%`;
  });
  return `linear-gradient(90deg, ${written.join(", ")}), ${css(GREY)}`;
}

/** A contribution with its sign and two digits that count. */
function signed(value) {
  const text = Math.abs(value).toPrecision(2);
  const short = text.includes("e") ? String(Number(text)) : text;
  return value === 0 ? "0" : `${value < 0 ? "−" : "+"}${short}`;
}
