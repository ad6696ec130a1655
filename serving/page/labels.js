/** Names of classes as people read them; what the model calls them stays in tooltips and commands. */

import { element } from "./dom.js";

/** `label` as {name, synonyms}: "great_white_shark, man-eater" is named "great white shark". */
export function readLabel(label) {
  const [name, ...others] = label.replaceAll("_", " ").split(", ");
  return name.trim() ? { name: name.trim(), synonyms: others.join(", ") } : { name: label, synonyms: "" };
}

/** The name of a class with its synonyms after it in small print, and the label itself as a tooltip. */
export function labelElement(label, ...before) {
  const { name, synonyms } = readLabel(label);
  const rest = synonyms ? element("span", { class: "synonyms" }, ` ${synonyms}`) : null;
  return element("span", { class: "label", title: label }, before, name, rest);
}

/** "It knows 10 classes: tench, English springer and 8 more", as long as `most` names allow. */
export function knownClasses(labels, most) {
  const names = labels.map((label) => readLabel(label).name);
  const listed = names.slice(0, most).join(", ");
  const rest = names.length > most ? ` and ${names.length - most} more` : "";
  return `${names.length === 1 ? "1 class" : `${names.length} classes`}: ${listed}${rest}`;
}
