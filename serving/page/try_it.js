/** A form for an operation, made of its description, that sends it to this server and shows what comes back. */

import { request } from "./client.js";
import { element } from "./dom.js";
import { isFile, mediaExample, resolve } from "./schema.js";

const SHOWN_CHARACTERS = 20_000; // of an answer; the whole of it can be saved

let count = 0;

/** A folded form; everything in it that is left empty is not sent. */
export function tryIt(document, method, path, operation) {
  const parameters = operation.parameters.map((reference) => {
    const parameter = resolve(document, reference);
    return { ...parameter, control: controlOf(resolve(document, parameter.schema ?? {}), parameter) };
  });
  const body = bodyFields(document, operation);
  const accept = acceptField(document, operation);
  const button = element("button", { type: "submit", class: "primary" }, "Send");
  const result = element("div", { class: "result", "aria-live": "polite" });
  const form = element(
    "form",
    { class: "try" },
    parameters.map(({ name, required, control }) => field(required ? `${name} (required)` : name, control)),
    body?.nodes,
    accept ? field("Answer as", accept) : null,
    element("div", {}, button),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const options = { method: method.toUpperCase(), headers: accept ? { Accept: accept.value } : {} };
      body?.fill(options);
      result.replaceChildren(...(await answerNodes(pathOf(path, parameters), options)));
    } catch (error) {
      result.replaceChildren(element("p", { class: "status failure" }, `Nothing came back: ${error.message}`));
    }
    button.disabled = false;
  });
  return element("details", { class: "answer" }, element("summary", {}, "Try it"), form, result);
}

/** `path` with what was given, relative to the page's own address. */
function pathOf(path, parameters) {
  const given = parameters.map(({ name, in: place, control }) => ({ name, place, value: control.value.trim() }));
  let filled = path;
  for (const { name, place, value } of given) {
    if (place === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(value));
  }
  const query = new URLSearchParams(
    given.filter(({ place, value }) => place === "query" && value !== "").map(({ name, value }) => [name, value]),
  );
  return filled.slice(1) + (query.size > 0 ? `?${query}` : "");
}

function field(title, control) {
  control.id = `try-${++count}`;
  return element("div", { class: "try-field" }, element("label", { for: control.id }, title), control);
}

/** An input for a value of that schema; its default is shown and not sent. */
function controlOf(schema, { required }) {
  const preset = schema.default === undefined ? "" : String(schema.default);
  const choices = schema.enum ?? (schema.type === "boolean" ? [true, false] : null);
  if (choices) {
    const options = choices.map((choice) => element("option", { value: choice }, String(choice)));
    return element("select", {}, element("option", { value: "" }, preset ? `default (${preset})` : "not sent"), options);
  }
  const isNumber = schema.type === "integer" || schema.type === "number";
  return element("input", {
    type: isNumber ? "number" : "text",
    min: schema.minimum,
    max: schema.maximum,
    step: isNumber ? (schema.type === "integer" ? 1 : "any") : null,
    placeholder: preset,
    required,
    autocomplete: "off",
    spellcheck: "false",
  });
}

/** {nodes, fill} for the body: what chooses and holds it, and what puts it into the options of a request; or null. */
function bodyFields(document, operation) {
  const content = Object.entries(resolve(document, operation.requestBody ?? {}).content ?? {});
  if (content.length === 0) return null;
  const kinds = content.map(([type, media]) => ({ type, ...bodyKind(document, type, media) }));
  const choice = element(
    "select",
    {},
    kinds.map(({ type }, index) => element("option", { value: index }, type)),
  );
  const place = element("div", { class: "try-body" });
  const show = () => place.replaceChildren(...kinds[Number(choice.value)].nodes);
  choice.addEventListener("change", show);
  show();
  return {
    nodes: [kinds.length > 1 ? field("Send as", choice) : null, place],
    fill: (options) => kinds[Number(choice.value)].fill(options),
  };
}

function bodyKind(document, type, media) {
  const schema = resolve(document, media.schema ?? {});
  if (type.startsWith("multipart/")) return formKind(document, schema);
  if (isFile(document, schema)) {
    const control = element("input", { type: "file", required: true });
    return {
      nodes: [field("File", control)],
      fill: (options) => {
        options.body = control.files[0];
        options.headers["Content-Type"] = type.includes("*") ? "application/octet-stream" : type;
      },
    };
  }
  const example = mediaExample(document, media, true);
  const control = element("textarea", { rows: 6, spellcheck: "false" });
  control.value = typeof example === "string" ? example : JSON.stringify(example, null, 2);
  return {
    nodes: [field("Body", control)],
    fill: (options) => {
      options.body = control.value;
      options.headers["Content-Type"] = type;
    },
  };
}

/** The browser writes a form's Content-Type itself, as only it knows the boundary. */
function formKind(document, schema) {
  const controls = Object.entries(schema.properties ?? {}).map(([name, property]) => {
    const found = resolve(document, property);
    const required = (schema.required ?? []).includes(name);
    const control = isFile(document, property)
      ? element("input", { type: "file", multiple: found.type === "array", required })
      : controlOf(found, { required });
    return [name, control];
  });
  return {
    nodes: controls.map(([name, control]) => field(name, control)),
    fill: (options) => {
      options.body = new FormData();
      for (const [name, { files, value }] of controls) {
        if (files) for (const file of files) options.body.append(name, file);
        else if (value !== "") options.body.append(name, value);
      }
    },
  };
}

function acceptField(document, operation) {
  const types = Object.keys(resolve(document, operation.responses?.["200"] ?? {}).content ?? {});
  if (types.length < 2) return null;
  return element(
    "select",
    {},
    types.map((type) => element("option", { value: type }, type)),
  );
}

// ---------------------------------------------------------------------------------------------------------- answer

async function answerNodes(path, options) {
  const started = performance.now();
  const response = await request(path, options);
  const blob = await response.blob();
  const elapsed = performance.now() - started;
  const facts = `${elapsed.toFixed(0)} ms, ${blob.size.toLocaleString("en")} bytes`;
  const status = `${response.status} ${response.statusText}`.trim();
  const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  return [
    element("p", {}, element("span", { class: response.ok ? "status" : "status failure" }, status), ` ${facts}`),
    element("details", {}, element("summary", {}, "Headers"), element("pre", { tabindex: "0" }, headers)),
    await bodyNode(blob),
  ];
}

/** A picture, a text, or a link that saves the bytes. */
async function bodyNode(blob) {
  if (blob.type.startsWith("image/")) {
    return element("img", { src: URL.createObjectURL(blob), alt: "The answer", class: "picture" });
  }
  if (!/json|text|xml/.test(blob.type)) {
    const name = blob.type.includes("safetensors") ? "answer.safetensors" : "answer.bin";
    return element("a", { href: URL.createObjectURL(blob), download: name }, `Save the ${blob.type || "answer"}`);
  }
  const text = pretty(await blob.text(), blob.type);
  const rest = text.length - SHOWN_CHARACTERS;
  const shown = rest > 0 ? `${text.slice(0, SHOWN_CHARACTERS)}\n… ${rest} characters more` : text;
  return element("pre", { tabindex: "0", "aria-label": "The answer" }, shown);
}

function pretty(text, type) {
  if (!type.includes("json")) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
