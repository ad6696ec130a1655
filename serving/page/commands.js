/** The page's own requests as commands and programs, to copy: curl, Python, Hugging Face's client, JavaScript. */

import { baseUrl } from "./client.js";
import { commandBlock, element, shellQuote } from "./dom.js";
import { tabs } from "./tabs.js";

/** The header that stands for an API key, without writing the key itself anywhere. */
export const KEY_HEADER = '-H "Authorization: Bearer $CONVMAE_API_KEY"';

const OCTETS = "application/octet-stream";
const ORIGIN_NOTE = "In a web page of another origin this works once CONVMAE_CORS_ORIGINS of the server names that origin.";
const WAYS = [
  { id: "curl", title: "curl", write: asCurl },
  { id: "python", title: "Python", write: asPython },
  { id: "huggingface", title: "Hugging Face", write: asHuggingFace },
  { id: "fetch", title: "JavaScript", write: asFetch, note: ORIGIN_NOTE },
];

let chosen = WAYS[0].id;

/**
 * Tabs with the ways to send the photo `fileName` as each of `requests` does: {title, path with query, accept, output,
 * huggingFace}, where accept is the media type to ask for, output the file that the answer goes to, and huggingFace
 * {method, options, encoded} of that client, each of these or nothing; encoded: the method wants base64.
 */
export function commandTabs(fileName, requests, withKey) {
  const entries = WAYS.map(({ id, title, write, note }) => ({ id, title, content: () => panel(write, note) }));
  return tabs("Ways to send it", entries, chosen, (id) => (chosen = id));

  function panel(write, note) {
    const written = requests.map((request) => [request.title, write(fileName, request, withKey)]);
    const missing = written.filter(([, text]) => !text).map(([title]) => title.toLowerCase());
    const sentences = [
      missing.length > 0 ? `Hugging Face's client has no method for this: ${missing.join(", ")}.` : null,
      note,
    ];
    return [
      ...written.filter(([, text]) => text).map(([title, text]) => commandBlock(title, text)),
      ...sentences.filter(Boolean).map((text) => element("p", { class: "muted note-left" }, text)),
    ];
  }
}

function asCurl(fileName, { path, accept, output }, withKey) {
  const words = [
    "curl -s",
    withKey ? KEY_HEADER : null,
    `--data-binary ${shellQuote(`@${fileName}`)}`,
    accept ? `-H ${shellQuote(`Accept: ${accept}`)}` : null,
    shellQuote(baseUrl() + path),
    output ? `-o ${output}` : null,
  ];
  return words.filter(Boolean).join(" ");
}

function asPython(fileName, { path, accept, output }, withKey) {
  const headers = [`"Content-Type": "${OCTETS}"`];
  if (accept) headers.push(`"Accept": "${accept}"`);
  if (withKey) headers.push(`"Authorization": "Bearer " + os.environ["CONVMAE_API_KEY"]`);
  return lines(
    output ? null : "import json",
    withKey ? "import os" : null,
    "from pathlib import Path",
    "from urllib.request import Request, urlopen",
    "",
    `request = Request(${quoted(baseUrl() + path)}, Path(${quoted(fileName)}).read_bytes())`,
    `request.headers = {${headers.join(", ")}}`,
    "with urlopen(request) as answer:",
    output ? `    Path("${output}").write_bytes(answer.read())` : "    print(json.load(answer))",
  );
}

function asHuggingFace(fileName, { path, huggingFace }, withKey) {
  if (!huggingFace) return null;
  const [route, query] = path.split("?");
  const model = new URLSearchParams(query).get("model");
  const url = baseUrl() + route + (model ? `?model=${encodeURIComponent(model)}` : "");
  const options = Object.entries(huggingFace.options ?? {}).map(([name, value]) => `, ${name}=${value}`);
  const { method, encoded } = huggingFace;
  const file = encoded ? `b64encode(Path(${quoted(fileName)}).read_bytes()).decode()` : quoted(fileName);
  return lines(
    withKey ? "import os" : null,
    encoded ? "from base64 import b64encode\nfrom pathlib import Path" : null,
    withKey || encoded ? "" : null,
    "from huggingface_hub import InferenceClient",
    "",
    `client = InferenceClient(model=${quoted(url)}${withKey ? ', token=os.environ["CONVMAE_API_KEY"]' : ""})`,
    `print(client.${method}(${file}${options.join("")}))`,
  );
}

function asFetch(fileName, { path, accept, output }, withKey) {
  const headers = [`"Content-Type": "${OCTETS}"`];
  if (accept) headers.push(`Accept: "${accept}"`);
  if (withKey) headers.push("Authorization: `Bearer ${key}`");
  return lines(
    'const [file] = document.querySelector("input[type=file]").files;',
    `const answer = await fetch(${quoted(baseUrl() + path)}, {`,
    '  method: "POST",',
    `  headers: { ${headers.join(", ")} },`,
    "  body: file,",
    "});",
    output ? "const bytes = await answer.arrayBuffer();" : "console.log(await answer.json());",
  );
}

/** A string of Python and of JavaScript. */
function quoted(text) {
  return JSON.stringify(text);
}

function lines(...texts) {
  return texts.filter((text) => text !== null).join("\n");
}
