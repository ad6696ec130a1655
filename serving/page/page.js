/**
 * The page at `/`: one photo, its classes and its feature levels.
 *
 * States, on `document.body.dataset.state`: idle (nothing asked yet), working, done, error. A new photo aborts the
 * requests in flight. Text from the server or from a file name reaches the document as text nodes only.
 */

import {
  ServerError,
  classifyPath,
  featuresPath,
  fetchModel,
  fetchModels,
  hasApiKey,
  postPhoto,
  serverTimings,
  useApiKey,
} from "./client.js";
import { commandBlock, element } from "./dom.js";
import { curlCommands } from "./commands.js";
import { principalComponents, toPixels } from "./components.js";
import { featureLevels, modelFacts, visibleRegion } from "./model.js";
import { parseSafetensors } from "./tensors.js";

const TOP_K = 5;
const PHOTO_HEIGHT_REM = 22;
const SAFETENSORS = "application/x-safetensors";

const session = {
  models: [], // classification models being served
  details: null, // what the server says about the one chosen
  photo: null, // the File shown
  preview: null, // its object URL
  requests: null, // AbortController of the run in flight
};

const byId = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------------------- states

function enter(state) {
  document.body.dataset.state = state;
  const shown = state === "working" || state === "done";
  byId("predictions").hidden = !shown;
  byId("levels").hidden = !shown;
  byId("predictions").setAttribute("aria-busy", String(state === "working"));
  byId("terminal").hidden = state !== "done";
  byId("crop-note").hidden = !shown;
  updatePicker();
  if (state !== "error") byId("alert").replaceChildren();
}

/** The picker fills the card until there is a photo, or an answer, to look at. */
function updatePicker() {
  const picked = !byId("photo-frame").hidden || ["working", "done"].includes(document.body.dataset.state);
  document.body.dataset.picked = picked ? "yes" : "no";
  byId("picker-title").textContent = picked ? "Choose another photo" : "Choose a photo";
}

function announce(sentence) {
  byId("status").textContent = sentence;
}

function fail(error) {
  if (error.status === 401) askForKey();
  // The first 401 only says that a key is needed, which the form that appears says better.
  if (error.status === 401 && !hasApiKey()) return enter("idle");
  enter("error");
  announce("");
  byId("alert").textContent = error.message;
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

// ---------------------------------------------------------------------------------------------------------- models

/** Fetches the list of models and the details of the first default; resolves to whether there is a model to ask. */
async function loadModels() {
  const models = await fetchModels();
  session.models = models.filter((model) => model.task === "classification");
  if (session.models.length === 0) {
    throw new ServerError(
      "This server has no classification model; its API reference lists what it offers.",
      404,
      "no_model",
    );
  }
  const first = session.models.find((model) => model.default) ?? session.models[0];
  byId("model").replaceChildren(...session.models.map(({ id }) => element("option", { value: id }, id)));
  byId("model").value = first.id;
  byId("model-choice").hidden = session.models.length < 2;
  await chooseModel(first.id);
  byId("key-form").hidden = true;
}

async function chooseModel(id) {
  session.details = await fetchModel(id);
  const { labels = [], licence, variant } = session.details;
  byId("facts").replaceChildren(
    ...modelFacts(session.details).map(([term, text]) =>
      element("div", {}, element("dt", {}, term), element("dd", {}, text)),
    ),
  );
  byId("classes-summary").textContent =
    labels.length === 1 ? "The one class it knows" : `The ${labels.length} classes it knows`;
  byId("classes").replaceChildren(...labels.map((label) => element("li", {}, label)));
  byId("classes-details").hidden = labels.length === 0;
  byId("about").hidden = false;
  byId("colophon").textContent =
    `ConvMAE ${variant}, model ${id}. Licence of its weights: ${licence?.name ?? "not stated"}.`;
  showRegion();
}

/** The value of `?model=`, or null where the server has only one to choose from. */
function modelParameter() {
  return session.models.length > 1 ? session.details.id : null;
}

// ----------------------------------------------------------------------------------------------------------- photo

/** Shows `file` and asks the server about it. */
function take(file) {
  if (session.preview) URL.revokeObjectURL(session.preview);
  session.photo = file;
  session.preview = URL.createObjectURL(file);
  byId("photo-frame").hidden = true;
  byId("preview").src = session.preview;
  byId("preview").alt = `The photo ${file.name}`;
  run();
}

/** Small photos grow and large ones shrink to one size, so that the page does not jump from photo to photo. */
function previewLoaded() {
  const { naturalWidth: width, naturalHeight: height } = byId("preview");
  byId("photo-frame").style.aspectRatio = `${width} / ${height}`;
  byId("photo-frame").style.width = `min(100%, ${(PHOTO_HEIGHT_REM * width) / height}rem)`;
  byId("photo-frame").hidden = false;
  showRegion();
  updatePicker();
}

function previewFailed() {
  byId("photo-frame").hidden = true;
  byId("crop-note").textContent = session.photo ? `${session.photo.name}, which this browser cannot display` : "";
  updatePicker();
}

/** Dims what the model's centre crop leaves out of the photo. */
function showRegion() {
  const { naturalWidth: width, naturalHeight: height } = byId("preview");
  if (byId("photo-frame").hidden || !width) return;
  const region = session.details ? visibleRegion(width, height, session.details.preprocessing) : null;
  byId("crop").hidden = !region;
  if (region) for (const [side, share] of Object.entries(region)) byId("crop").style[side] = `${100 * share}%`;
  byId("crop-note").textContent =
    `${session.photo.name}, ${width} × ${height}${region ? "; the model sees the bright part" : ""}`;
}

// ------------------------------------------------------------------------------------------------------------- run

/** One round: classification and features of the photo; ends in done or error, or is aborted by the next round. */
async function run() {
  session.requests?.abort();
  const requests = new AbortController();
  session.requests = requests;
  const { photo } = session;
  enter("working");
  showPlaceholders();
  announce("Working on the photo");
  try {
    await checkReadable(photo);
    if (!session.details) await loadModels();
    const [predictions, levels] = await Promise.all([
      classify(photo, requests.signal),
      extract(photo, requests.signal),
    ]);
    if (requests.signal.aborted) return;
    showCommands(photo, levels);
    enter("done");
    const [best] = predictions;
    announce(`${best.label}, ${percent(best.score)}. ${levels.length} feature levels shown.`);
  } catch (error) {
    if (requests.signal.aborted) return;
    requests.abort();
    fail(error);
  }
}

/** A folder, or a file that was moved since, fails here with a sentence instead of as a broken connection. */
async function checkReadable(photo) {
  try {
    await photo.slice(0, 1).arrayBuffer();
  } catch {
    throw new ServerError(`${photo.name} cannot be read; choose a photo file.`, 0, "unreadable");
  }
}

function topK() {
  return Math.min(TOP_K, session.details.labels?.length || TOP_K);
}

async function classify(photo, signal) {
  const started = performance.now();
  const response = await postPhoto(classifyPath(topK(), modelParameter()), photo, "application/json", signal);
  const predictions = await response.json();
  const elapsed = performance.now() - started;
  if (!signal.aborted) showPredictions(predictions, serverTimings(response), elapsed);
  return predictions;
}

async function extract(photo, signal) {
  const levels = featureLevels(session.details);
  if (levels.length === 0) return [];
  const names = levels.map(({ name }) => name);
  const response = await postPhoto(featuresPath(names, modelParameter()), photo, SAFETENSORS, signal);
  const tensors = parseSafetensors(await response.arrayBuffer());
  const figures = [];
  for (const level of levels) {
    if (signal.aborted) return [];
    figures.push(mapFigure(level, tensors.get(level.name)));
    // The components of a large model's maps take a while: let the browser paint and react between two levels.
    await new Promise((resolve) => setTimeout(resolve));
  }
  if (!signal.aborted) byId("maps").replaceChildren(...figures);
  return names;
}

// --------------------------------------------------------------------------------------------------------- results

/** Grey bars in the places of what is to come, so that nothing jumps when it does. */
function showPlaceholders() {
  const count = session.details ? topK() : TOP_K;
  const levels = session.details ? featureLevels(session.details) : [];
  byId("ranking").replaceChildren(...Array.from({ length: count }, () => predictionRow("", 0, "pending")));
  byId("timing").textContent = "";
  byId("maps").replaceChildren(
    ...levels.map(() =>
      element("figure", { class: "pending", "aria-hidden": "true" }, element("div", { class: "map" })),
    ),
  );
}

function showPredictions(predictions, timings, elapsed) {
  byId("ranking").replaceChildren(...predictions.map(({ label, score }) => predictionRow(label, score, null)));
  const spent = timings.map(([name, duration]) => `${name} ${milliseconds(duration)}`);
  byId("timing").textContent = [`${milliseconds(elapsed)} round trip`, ...spent].join(" · ");
}

function predictionRow(label, score, state) {
  const fill = element("div", { class: "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
  return element(
    "li",
    { class: state, "aria-hidden": state ? "true" : null },
    element("span", { class: "label" }, label),
    element("span", { class: "score" }, state ? "" : percent(score)),
    element("div", { class: "track", "aria-hidden": "true" }, fill),
  );
}

/** One level as a picture with its caption; `tensor` is {shape: [1, C, H, W], data}. */
function mapFigure({ name, stride }, tensor) {
  if (!tensor) throw new ServerError(`The server's answer lacks the feature level ${name}.`, 0, "missing_level");
  const [, channels, height, width] = tensor.shape;
  const { scores, variances, total } = principalComponents(tensor.data, channels, height * width);
  const explained = total > 0 ? variances.reduce((sum, variance) => sum + variance, 0) / total : 0;
  const label = `Feature level ${name}: ${height} by ${width} cells as colours`;
  const canvas = element("canvas", {
    class: "map",
    width,
    height,
    role: "img",
    "aria-label": label,
    "data-level": name,
  });
  canvas.getContext("2d").putImageData(new ImageData(toPixels(scores), width, height), 0, 0);
  return element(
    "figure",
    {},
    canvas,
    element(
      "figcaption",
      {},
      element("span", { class: "caption" }, element("strong", {}, name), `, stride ${stride}`),
      element("span", { class: "shape" }, `${channels} × ${height} × ${width}`),
      element("span", { class: "shape" }, `${(100 * explained).toFixed(0)} % of variance shown`),
    ),
  );
}

function showCommands(photo, levels) {
  const paths = [classifyPath(topK(), modelParameter()), levels.length ? featuresPath(levels, modelParameter()) : null];
  const commands = curlCommands(location.origin, photo.name, paths, hasApiKey());
  byId("commands").replaceChildren(...commands.map(([title, command]) => commandBlock(title, command)));
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function milliseconds(duration) {
  return `${duration.toFixed(duration < 10 ? 1 : 0)} ms`;
}

// ---------------------------------------------------------------------------------------------------------- events

function takeFirst(files) {
  if (files.length === 0) return;
  take(files[0]);
}

function listenToDrops() {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dragging");
  });
  window.addEventListener("drop", (event) => {
    document.body.classList.remove("dragging");
    if (event.target instanceof HTMLInputElement && event.target.type !== "file") return;
    event.preventDefault(); // else the browser leaves this page for the file
    if (event.dataTransfer.files.length > 0) takeFirst(event.dataTransfer.files);
    else
      fail(
        new ServerError("What was dropped is not a file; save the photo first, then drop it here.", 0, "not_a_file"),
      );
  });
}

function listen() {
  byId("preview").addEventListener("load", previewLoaded);
  byId("preview").addEventListener("error", previewFailed);
  byId("photo").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that picking the same photo again is a change too
    takeFirst(files);
  });
  window.addEventListener("paste", (event) => takeFirst(event.clipboardData?.files ?? []));
  listenToDrops();
  byId("model").addEventListener("change", async (event) => {
    session.requests?.abort();
    try {
      await chooseModel(event.target.value);
      if (session.photo) run();
    } catch (error) {
      fail(error);
    }
  });
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    useApiKey(byId("key").value.trim());
    byId("key").value = "";
    try {
      await loadModels();
      enter("idle");
      if (session.photo) run();
      else byId("photo").focus();
    } catch (error) {
      fail(error);
    }
  });
}

listen();
loadModels().catch(fail);
