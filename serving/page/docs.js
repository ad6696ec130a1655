/** The page at `/docs`: the server's own /openapi.json, readable and offline, with commands to copy and forms to try. */

import { useApiKey } from "./client.js";
import { curlCommands } from "./docs_commands.js";
import { commandBlock, element } from "./dom.js";
import { mediaExample, resolve, typeInWords } from "./schema.js";
import { tryIt } from "./try_it.js";

const METHODS = ["get", "post", "put", "patch", "delete", "head", "options"];

/** Every operation of `document`: [{method, path, id, tag, operation}], those of a tag together. */
function operationsOf(document) {
  const operations = Object.entries(document.paths ?? {}).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({
      method,
      path,
      id: `${method}${path}`.replace(/[^A-Za-z0-9]+/g, "-"),
      tag: item[method].tags?.[0] ?? "",
      operation: { ...item[method], parameters: [...(item.parameters ?? []), ...(item[method].parameters ?? [])] },
    })),
  );
  const tags = [...new Set([...(document.tags ?? []).map(({ name }) => name), ...operations.map(({ tag }) => tag)])];
  return operations.sort((first, second) => tags.indexOf(first.tag) - tags.indexOf(second.tag));
}

/** Paragraphs of plain text; `code` between backticks is set as code, and nothing else is markup. */
function prose(text) {
  const paragraphs = (text ?? "").split(/\n\s*\n/).filter((paragraph) => paragraph.trim());
  return paragraphs.map((paragraph) => element("p", {}, inline(paragraph)));
}

function inline(text) {
  return text.split("`").map((part, index) => (index % 2 === 1 ? element("code", {}, part) : part));
}

function methodTag(method) {
  return element("span", { class: method === "get" || method === "head" ? "method" : "method writes" }, method);
}

/** A path that may be broken after its slashes, as one word. */
function breakable(path) {
  const steps = path.split("/").slice(1);
  return element("span", {}, steps.map((step) => ["/", element("wbr"), step]));
}

// -------------------------------------------------------------------------------------------------------- sections

function contents(operations) {
  const tags = [...new Set(operations.map(({ tag }) => tag))];
  return tags.flatMap((tag) => [
    tag ? element("p", {}, tag) : null,
    element(
      "ul",
      {},
      operations
        .filter((entry) => entry.tag === tag)
        .map(({ method, path, id, operation }) => {
          const off = operation["x-unavailable"];
          return element("li", {}, element("a", { href: `#${id}`, class: off ? "off" : null }, methodTag(method), breakable(path)));
        }),
    ),
  ]);
}

function operationCard(document, { method, path, id, operation }) {
  const titleId = `${id}-title`;
  const attributes = {
    class: "card operation",
    id,
    "aria-labelledby": titleId,
    "data-method": method,
    "data-path": path,
  };
  return element(
    "section",
    attributes,
    element("h2", { id: titleId }, methodTag(method), element("code", {}, path)),
    operation.summary ? element("p", { class: "summary" }, operation.summary) : null,
    unavailable(operation["x-unavailable"]),
    element("div", { class: "prose" }, prose(operation.description)),
    curlCommands(document, method, path, operation).map(([title, command]) => commandBlock(title, command)),
    operation["x-unavailable"] ? null : tryIt(document, method, path, operation),
    parametersTable(document, operation.parameters),
    requestBody(document, operation.requestBody),
    responses(document, operation.responses ?? {}),
  );
}

/** Why this server cannot answer an operation, where it says so. */
function unavailable(reason) {
  return reason ? element("p", { class: "unavailable" }, element("strong", {}, "Not on this server: "), reason) : null;
}

function parametersTable(document, references) {
  const parameters = references.map((reference) => resolve(document, reference));
  if (parameters.length === 0) return null;
  const rows = parameters.map((parameter) => {
    const schema = resolve(document, parameter.schema ?? {});
    const preset =
      schema.default === undefined || schema.default === null ? null : `default ${JSON.stringify(schema.default)}`;
    return element(
      "tr",
      {},
      element("td", {}, element("code", {}, parameter.name), element("span", { class: "muted" }, `in ${parameter.in}`)),
      element(
        "td",
        {},
        typeInWords(document, schema),
        element("span", { class: "muted" }, parameter.required ? "required" : preset),
      ),
      element("td", {}, inline(parameter.description ?? schema.description ?? "")),
    );
  });
  const head = ["Parameter", "Type", "Meaning"].map((title) => element("th", { scope: "col" }, title));
  return [
    element("h3", {}, "Parameters"),
    element(
      "table",
      { class: "parameters" },
      element("thead", {}, element("tr", {}, head)),
      element("tbody", {}, rows),
    ),
  ];
}

function requestBody(document, reference) {
  const body = reference ? resolve(document, reference) : null;
  if (!body) return null;
  return [
    element("h3", {}, body.required ? "Request body" : "Request body (optional)"),
    element("div", { class: "prose" }, prose(body.description)),
    Object.entries(body.content ?? {}).map(([type, media]) => mediaBlock(document, type, media)),
  ];
}

/** Successes each by itself and open; errors of one shape together, folded, with what each status means. */
function responses(document, references) {
  const entries = Object.entries(references).map(([status, reference]) => ({
    status,
    response: resolve(document, reference),
  }));
  const isFailure = ({ status }) => /^([45]|default)/.test(status);
  const groups = new Map();
  for (const entry of entries.filter(isFailure)) {
    const shape = JSON.stringify(entry.response.content ?? {});
    groups.set(shape, [...(groups.get(shape) ?? []), entry]);
  }
  return [
    element("h3", {}, "Responses"),
    entries.filter((entry) => !isFailure(entry)).map((entry) => responseDetails(document, [entry], false)),
    [...groups.values()].map((group) => responseDetails(document, group, true)),
  ];
}

/** One or several statuses whose answers have the same shape. */
function responseDetails(document, entries, isFailure) {
  const [{ response }] = entries;
  const codes = entries.map(({ status }) =>
    element("span", { class: isFailure ? "status failure" : "status" }, status),
  );
  const title = entries.length === 1 ? inline(response.description ?? "") : "errors of one shape";
  const meanings = entries.map(({ status, response: { description } }) =>
    element("li", {}, element("span", { class: "status" }, status), " ", inline(description ?? "")),
  );
  return element(
    "details",
    { class: "answer", open: !isFailure },
    element("summary", {}, codes, element("span", {}, title)),
    entries.length > 1 ? element("ul", { class: "meanings" }, meanings) : null,
    headerList(document, response.headers ?? {}),
    Object.entries(response.content ?? {}).map(([type, media]) => mediaBlock(document, type, media)),
  );
}

function headerList(document, headers) {
  return Object.entries(headers).map(([name, reference]) => {
    const { description } = resolve(document, reference);
    return element(
      "p",
      { class: "media" },
      element("code", {}, name),
      description ? ": " : null,
      inline(description ?? ""),
    );
  });
}

/** One media type with its example; bytes have none. */
function mediaBlock(document, type, media) {
  const schema = resolve(document, media.schema ?? {});
  const block = element("div", { class: "media" }, element("code", {}, type));
  if (schema.description) block.append(element("span", { class: "muted" }, " ", inline(schema.description)));
  if (type.startsWith("multipart/")) {
    const fields = Object.entries(schema.properties ?? {}).map(
      ([name, property]) => `${name}: ${typeInWords(document, property)}`,
    );
    block.append(element("span", { class: "muted" }, ` with the fields ${fields.join("; ")}`));
  }
  if (!/json|text/.test(type)) return block;
  const example = mediaExample(document, media);
  // An object of which nothing is said has an empty example, which says nothing either.
  if (example === null || example === undefined || JSON.stringify(example) === "{}") return block;
  const text = typeof example === "string" ? example : JSON.stringify(example, null, 2);
  block.append(element("pre", { tabindex: "0", "aria-label": `Example of ${type}` }, element("code", {}, text)));
  return block;
}

// ------------------------------------------------------------------------------------------------------------ page

async function show() {
  const response = await fetch("openapi.json", { cache: "no-store" });
  if (!response.ok) throw new Error(`openapi.json answered with status ${response.status}.`);
  const document = await response.json();
  const operations = operationsOf(document);
  const byId = (id) => window.document.getElementById(id);
  byId("description").replaceChildren(...prose(document.info?.description));
  byId("version").textContent = document.info?.version ? `, version ${document.info.version}` : "";
  byId("key").addEventListener("change", (event) => useApiKey(event.target.value.trim()));
  byId("contents").replaceChildren(...contents(operations).filter(Boolean));
  byId("operations").replaceChildren(...operations.map((entry) => operationCard(document, entry)));
  // The browser looked for the fragment before the operations existed.
  if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
}

show().catch((error) => {
  window.document.getElementById("alert").textContent = `The reference cannot be shown: ${error.message}`;
});
