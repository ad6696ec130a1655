/** The curl commands of an operation: one for each way of sending a body, or one where there is none. */

import { baseUrl } from "./client.js";
import { KEY_HEADER } from "./commands.js";
import { shellQuote } from "./dom.js";
import { exampleOf, isFile, mediaExample, resolve } from "./schema.js";

const DATA_URI = /(data:(?:image|video)\/[a-z0-9]+;base64,)[^"]*/;
const RAW_BODY = /^(image\/|video\/|application\/octet-stream|\*\/\*)/;
const BINARY_ANSWERS = [
  [/safetensors/, "answer.safetensors"],
  [/npz/, "answer.npz"],
];

/** [title, command] pairs. */
export function curlCommands(document, method, path, operation) {
  const body = operation.requestBody ? resolve(document, operation.requestBody) : null;
  const types = Object.keys(body?.content ?? {}).filter((type) => isWholeFile(document, type, body.content[type]));
  const kinds = [types.find((type) => RAW_BODY.test(type)), ...types.filter((type) => !RAW_BODY.test(type))];
  const sent = body ? kinds.filter(Boolean) : [null];
  const file = /video/i.test(operation.summary) && !/image|photo/i.test(operation.summary) ? "clip.mp4" : "photo.jpg";
  const start = ["curl -s", ...methodOption(method, body), ...keyOption(document, operation)].join(" ");
  const [accept, output] = responseOptions(document, operation);
  const url = shellQuote(baseUrl() + filledPath(document, path, operation).slice(1));
  return sent.map((type) => {
    const [source, option] = type ? bodyOption(document, type, body.content[type], file) : [];
    const command = [start, option, accept, url, output].filter(Boolean).join(" ");
    return [type ? `curl, ${type}` : "curl", source ? `${source} |\n  ${command}` : command];
  });
}

/** Bytes that begin with JSON are no file that a user has at hand; their description says so. */
function isWholeFile(document, type, media) {
  return !RAW_BODY.test(type) || !/\bJSON\b/.test(resolve(document, media.schema ?? {}).description ?? "");
}

function methodOption(method, body) {
  if (method === "head") return ["-I"];
  return method === (body ? "post" : "get") ? [] : [`-X ${method.toUpperCase()}`];
}

function keyOption(document, operation) {
  const schemes = operation.security ?? document.security ?? [];
  const required = schemes.length > 0 && schemes.every((scheme) => Object.keys(scheme).length > 0);
  return required ? [KEY_HEADER] : [];
}

/** The path with its parameters in capitals, and the query parameters that are required. */
function filledPath(document, path, operation) {
  const query = operation.parameters
    .map((reference) => resolve(document, reference))
    .filter((parameter) => parameter.in === "query" && parameter.required)
    .map((parameter) => {
      const value = parameter.example ?? exampleOf(document, parameter.schema ?? {});
      return `${encodeURIComponent(parameter.name)}=${encodeURIComponent(value)}`;
    });
  const filled = path.replace(/\{([^}]+)\}/g, (_, name) => name.toUpperCase());
  return query.length > 0 ? `${filled}?${query.join("&")}` : filled;
}

/** [command that writes the body or null, curl's option for the body] that sends `file`. */
function bodyOption(document, type, media, file) {
  if (type.startsWith("multipart/")) {
    const properties = Object.entries(resolve(document, media.schema ?? {}).properties ?? {});
    const [name] = properties.find(([, property]) => isFile(document, property)) ?? ["file"];
    return [null, `-F ${name}=@${file}`];
  }
  if (!type.includes("json")) return [null, `--data-binary @${file}`];
  const header = `-H ${shellQuote(`Content-Type: ${type}`)}`;
  const body = JSON.stringify(mediaExample(document, media, true));
  if (!DATA_URI.test(body)) return [null, `${header} -d ${shellQuote(body)}`];
  // The command puts a whole file in the place of the example's.
  const template = body.replaceAll("%", "%%").replace(DATA_URI, "$1%s");
  return [`printf ${shellQuote(template)} "$(base64 < ${file} | tr -d '\\n')"`, `${header} --data-binary @-`];
}

/** Where the answer is best as bytes: the Accept header that asks for them, and the file they go to. */
function responseOptions(document, operation) {
  const types = Object.keys(resolve(document, operation.responses?.["200"] ?? {}).content ?? {});
  for (const [pattern, file] of BINARY_ANSWERS) {
    const type = types.find((one) => pattern.test(one));
    if (type) return [`-H ${shellQuote(`Accept: ${type}`)}`, `-o ${file}`];
  }
  return [null, null];
}
