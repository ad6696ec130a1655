/** The server as the page sees it: what it asks, and one kind of error. The API key lives in memory only. */

/** A request that was refused (status 4xx, 5xx) or never arrived (status 0); the message is a sentence to show. */
export class ServerError extends Error {
  constructor(message, status, code, requestId = null, retryAfter = null) {
    super(message);
    this.name = "ServerError";
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.retryAfter = retryAfter; // seconds
  }
}

let apiKey = "";

/** Where the server answers, as the address bar has it: behind a proxy with a path of its own too. Ends in a slash. */
export function baseUrl() {
  return new URL(".", document.baseURI).href;
}

/** Sends `key` with every later request; an empty key sends none. */
export function useApiKey(key) {
  apiKey = key;
}

/** Whether requests carry a key. */
export function hasApiKey() {
  return apiKey !== "";
}

/** The models being served: [{id, task, variant, default, licence, ...}]. */
export async function fetchModels() {
  return (await (await send("v1/models")).json()).data;
}

/** Everything the server says about one model: labels, input, preprocessing, outputs, numerics, licence. */
export async function fetchModel(id) {
  return (await send(`v1/models/${encodeURIComponent(id)}`)).json();
}

/** The path and query of a classification, also what the page shows as a command. */
export function classifyPath(topK, model) {
  return `v1/classify?top_k=${topK}${modelParameter(model)}`;
}

/** The path and query of what each cell adds to a class, by its name or its index; null: to the likeliest. */
export function explainPath(label, model) {
  const wanted = label === null ? "" : `&explain_label=${encodeURIComponent(label)}`;
  return `v1/classify?explain=map${wanted}${modelParameter(model)}`;
}

/** The path and query of a video's classification; `views` is {temporal, spatial}, or null for one. */
export function classifyVideoPath(topK, views, model) {
  const several = views ? `&temporal_views=${views.temporal}&spatial_views=${views.spatial}` : "";
  return `v1/classify-video?top_k=${topK}${several}${modelParameter(model)}`;
}

/** The path and query of the features named by `levels`; of maps so many principal components, where given. */
export function featuresPath(levels, model, components = null, dtype = "f32") {
  const reduced = components ? `&components=${components}` : "";
  return `v1/features?levels=${levels.join(",")}&dtype=${dtype}${reduced}${modelParameter(model)}`;
}

/** The path and query of a detection; `masks` is how masks are to come, or null for none. */
export function detectPath(threshold, masks, model) {
  return `v1/detect?threshold=${threshold}${masks ? `&masks=${masks}` : ""}${modelParameter(model)}`;
}

/** The path and query for the label of each pixel; `masks` is how masks are to come, or null for the server's own way. */
export function segmentPath(masks, model) {
  const query = [masks ? `masks=${masks}` : null, model ? modelParameter(model).slice(1) : null].filter(Boolean);
  return query.length > 0 ? `v1/segment?${query.join("&")}` : "v1/segment";
}

/**
 * Posts the bytes of `photo` (a File, also a video's) to `path`; `accept` is the media type wanted. The bytes are labelled as nothing
 * in particular: what a file's name makes a browser believe (a .json, say) must not change how the server reads it.
 */
export function postPhoto(path, photo, accept, signal) {
  const headers = { Accept: accept, "Content-Type": "application/octet-stream" };
  return send(path, { method: "POST", body: photo, headers, signal });
}

/** The durations of a Server-Timing header in milliseconds, in the server's order: [["decode", 3.1], ...]. */
export function serverTimings(response) {
  const durations = [];
  for (const metric of (response.headers.get("Server-Timing") ?? "").split(",")) {
    const [name, ...parameters] = metric.split(";").map((part) => part.trim());
    const duration = parameters.find((parameter) => parameter.startsWith("dur="));
    if (name && duration && Number.isFinite(Number(duration.slice(4))))
      durations.push([name, Number(duration.slice(4))]);
  }
  return durations;
}

function modelParameter(model) {
  return model ? `&model=${encodeURIComponent(model)}` : "";
}

/** The response to a request with the key, whatever its status; rejects where none came. */
export function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  return fetch(path, { cache: "no-store", ...options, headers });
}

async function send(path, options = {}) {
  let response;
  try {
    response = await request(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(connectionSentence(options.body), 0, "unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** A server that refuses a large body closes the connection early, which a browser reports like an absent server. */
function connectionSentence(file) {
  const large = file && file.size > 10e6;
  const size = large ? `; perhaps the file of ${(file.size / 1e6).toFixed(0)} MB is larger than the server takes` : "";
  return `the connection broke off${size}`;
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Not this server's JSON (a proxy's page, say): the status alone is shown, never the text.
  }
  const message = error.message ?? `the answer has the status ${response.status} and no explanation`;
  const requestId = error.request_id ?? response.headers.get("X-Request-Id");
  const wait = Number(response.headers.get("Retry-After") ?? NaN); // or a date, which is left out
  return new ServerError(message, response.status, error.code, requestId, wait > 0 ? Math.ceil(wait) : null);
}
