/** What the results of all tasks look like: rows with a bar, and how long it took. */

import { element } from "./dom.js";
import { labelElement } from "./labels.js";

const byId = (id) => document.getElementById(id);

/**
 * One row: a class by its name, a figure and a bar as long as `share` of the whole. `colour` ([r, g, b]) puts a swatch before the
 * name and colours the bar; `button` comes at the end of the row; `state` "pending" makes it a grey bar in the place of what is to come.
 */
export function resultRow(label, share, { figure = percent(share), colour = null, button = null, state = null } = {}) {
  const fill = element("div", { class: "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  if (colour) fill.style.background = css(colour);
  const swatch = colour ? element("span", { class: "swatch", "aria-hidden": "true" }) : null;
  if (swatch) swatch.style.background = css(colour);
  return element(
    "li",
    { class: state, "aria-hidden": state ? "true" : null },
    labelElement(label, swatch),
    element("span", { class: "score" }, state ? "" : figure),
    button,
    element("div", { class: "track", "aria-hidden": "true" }, fill),
  );
}

/** One row of a name and a text, without a bar. */
export function textRow(label, text) {
  return element("li", {}, element("span", { class: "label" }, label), element("span", { class: "score" }, text));
}

/** Grey bars in the places of results, so that nothing jumps when they come. */
export function showPendingRows(count) {
  byId("ranking").replaceChildren(
    ...Array.from({ length: count }, () => resultRow("", 0, { state: "pending" })),
  );
  byId("timing").textContent = "";
}

export function showRows(rows) {
  byId("ranking").replaceChildren(...rows);
}

/** `timings` as [[phase, milliseconds], ...] of the server, `elapsed` the whole way in milliseconds. */
export function showTimings(timings, elapsed) {
  const spent = timings.map(([name, duration]) => `${name} ${milliseconds(duration)}`);
  byId("timing").textContent = [`${milliseconds(elapsed)} round trip`, ...spent].join(" · ");
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/** A colour as CSS writes it. */
export function css([red, green, blue], opacity = 1) {
  return `rgb(${red} ${green} ${blue} / ${opacity})`;
}

function milliseconds(duration) {
  return `${duration.toFixed(duration < 10 ? 1 : 0)} ms`;
}
