/** Tabs as the ARIA practices describe them: arrow keys, Home and End move between them, Tab goes on into the panel. */

import { element } from "./dom.js";

let count = 0;

/**
 * Tabs named `label`. `entries` are {id, title, content}, content a function that gives the nodes of the panel;
 * `chosen` is the id to begin with, and `choose` is told of every later one.
 */
export function tabs(label, entries, chosen, choose) {
  const panelId = `panel-${++count}`;
  const list = element("div", { class: "tabs", role: "tablist", "aria-label": label });
  const panel = element("div", { id: panelId, role: "tabpanel" });
  const buttons = entries.map(({ id, title }) => {
    const tab = { type: "button", role: "tab", id: `${panelId}-${id}`, "aria-controls": panelId };
    return element("button", tab, title);
  });
  const show = (at) => {
    buttons.forEach((button, index) => {
      button.setAttribute("aria-selected", String(index === at));
      button.tabIndex = index === at ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", buttons[at].id);
    panel.replaceChildren(...entries[at].content());
  };
  const move = (at) => {
    show(at);
    buttons[at].focus();
    choose(entries[at].id);
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => move(index)));
  list.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const last = buttons.length - 1;
    const target = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last };
    if (at < 0 || !(event.key in target)) return;
    event.preventDefault();
    move(target[event.key]);
  });
  list.append(...buttons);
  show(Math.max(0, entries.findIndex(({ id }) => id === chosen)));
  return element("div", {}, list, panel);
}
