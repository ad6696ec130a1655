/** Building elements without ever parsing text as HTML, and the copyable command that both pages show. */

/**
 * A new element. Attributes are set as written; `true` gives an empty attribute, `false` and null leave it out.
 * Children are nodes or strings; a string always becomes text.
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** `text` as one word of a POSIX shell. */
export function shellQuote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A command with a button that copies it; `title` names it to the eye and to a screen reader. */
export function commandBlock(title, command) {
  const code = element("code", {}, command);
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy: ${title}` }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(command, code)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return element(
    "div",
    { class: "command" },
    element("div", { class: "command-head" }, element("span", {}, title), button),
    element("pre", { tabindex: "0", "aria-label": title }, code),
  );
}

/** Copies `text`; outside a secure context, where there is no clipboard, it selects `node` and asks the browser. */
async function copyText(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const selection = window.getSelection();
    selection.selectAllChildren(node);
    return document.execCommand("copy");
  }
}
