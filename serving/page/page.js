/**
 * The page at `/`: one photo or video, and what the chosen model says about it.
 *
 * What depends on the model's task (words, results, commands) is in the modules of `VIEWS`; this is what they share, in
 * which a photo may be a video too.
 *
 * States, on `document.body.dataset.state`: idle (nothing asked yet), working, done, error. A new photo aborts the
 * requests in flight. Text from the server or from a file name reaches the document as text nodes only.
 */

import { classification } from "./classification.js";
import { ServerError, fetchModel, fetchModels, hasApiKey, useApiKey } from "./client.js";
import { commandTabs } from "./commands.js";
import { detection } from "./detection.js";
import { element } from "./dom.js";
import { features, videoFeatures } from "./features.js";
import { knownClasses, readLabel } from "./labels.js";
import { featureLevels, modelFacts, visibleRegion } from "./model.js";
import { clearOverlay } from "./overlay.js";
import { percent } from "./results.js";
import { sampleButtons } from "./samples.js";
import { segmentation } from "./segmentation.js";
import { video } from "./video.js";
import { errorInWords } from "./words.js";

// What is done for each task.
const VIEWS = {
  classification,
  detection,
  segmentation,
  "video-classification": video,
  features,
  "video-features": videoFeatures,
};
const PHOTO_TYPES = "image/jpeg,image/png,image/webp,image/bmp,image/gif,image/tiff";
const PHOTO_HEIGHT_REM = 22;
const KNOWN_NAMES = 12; // of classes, named beside a result

const session = {
  models: [], // those being served whose task this page knows
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
  byId("levels").hidden = !shown || !hasLevels();
  byId("predictions").setAttribute("aria-busy", String(state === "working"));
  byId("terminal").hidden = state !== "done";
  byId("crop-note").hidden = !shown;
  if (!shown) clearOverlay();
  updatePicker();
  if (state !== "error") byId("alert").replaceChildren();
}

/** The picker fills the card until there is a photo, or an answer, to look at. */
function updatePicker() {
  const picked = !byId("photo-frame").hidden || ["working", "done"].includes(document.body.dataset.state);
  document.body.dataset.picked = picked ? "yes" : "no";
  byId("picker-title").textContent = `Choose ${picked ? "another" : "a"} ${medium()}`;
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
  const { what, advice, again, details } = errorInWords(error, medium());
  const retry = element("button", { type: "button", class: "copy" }, "Try again");
  retry.addEventListener("click", () => (session.photo ? run() : loadModels().then(() => enter("idle"), fail)));
  byId("alert").replaceChildren(
    element("p", {}, element("strong", {}, what), advice ? ` ${advice}` : null),
    again ? retry : "",
    details ? element("p", { class: "small-print" }, details) : "",
  );
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

// ---------------------------------------------------------------------------------------------------------- models

/** Fetches the list of models and the details of the first default; resolves to whether there is a model to ask. */
async function loadModels() {
  const models = await fetchModels();
  session.models = models.filter((model) => model.task in VIEWS);
  if (session.models.length === 0) {
    throw new ServerError(
      "This server has no model that this page can show; its API reference lists what it offers.",
      404,
      "no_model",
    );
  }
  const first = session.models.find((model) => model.default) ?? session.models[0];
  const oneTask = new Set(session.models.map((model) => model.task)).size === 1;
  byId("model").replaceChildren(
    ...session.models.map(({ id, task }) => element("option", { value: id }, oneTask ? id : `${id} (${task})`)),
  );
  byId("model").value = first.id;
  byId("model-choice").hidden = session.models.length < 2;
  await chooseModel(first.id);
  byId("key-form").hidden = true;
}

async function chooseModel(id) {
  session.details = await fetchModel(id);
  const { labels = [], licence, variant } = session.details;
  const { title, lead, heading, accept = PHOTO_TYPES, hasThreshold = false } = view();
  document.title = `ConvMAE: ${title.toLowerCase()}`;
  byId("title").textContent = title;
  byId("lead").textContent = lead;
  byId("medium").textContent = document.body.dataset.medium = medium();
  byId("stage").setAttribute("aria-label", medium() === "video" ? "Video" : "Photo");
  byId("photo").accept = accept;
  byId("predictions-title").textContent = heading;
  byId("predictions").dataset.task = session.details.task;
  byId("threshold-choice").hidden = !hasThreshold;
  byId("maps-hint").hidden = medium() === "video";
  clearOverlay();
  byId("facts").replaceChildren(
    ...modelFacts(session.details).map(([term, text]) =>
      element("div", {}, element("dt", {}, term), element("dd", {}, text)),
    ),
  );
  byId("classes-summary").textContent =
    labels.length === 1 ? "The one class it knows" : `The ${labels.length} classes it knows`;
  byId("classes").replaceChildren(
    ...labels.map((label) => element("li", { title: label }, Object.values(readLabel(label)).filter(Boolean).join(", "))),
  );
  byId("knows").textContent = knowsSentence(labels);
  byId("samples").replaceChildren(...(medium() === "photo" ? sampleButtons(Boolean(view().looksAtScenes), take, fail) : []));
  byId("classes-details").hidden = labels.length === 0;
  byId("about").hidden = false;
  byId("colophon").textContent =
    `ConvMAE ${variant}, model ${id}. Licence of its weights: ${licence?.name ?? "not stated"}.`;
  showRegion();
  updatePicker();
}

/** What a classifier's answer must be read against: it has no word for anything else. */
function knowsSentence(labels) {
  if (!view().choosesAmongClasses || labels.length === 0) return "";
  return `The model knows ${knownClasses(labels, KNOWN_NAMES)}. Whatever the ${medium()} shows, it chooses among these.`;
}

/** What the page does for the task of the chosen model. */
function view() {
  return VIEWS[session.details?.task] ?? classification;
}

/** What the chosen model looks at, in a word. */
function medium() {
  return view().medium ?? "photo";
}

function hasLevels() {
  return session.details !== null && Boolean(view().hasLevels) && featureLevels(session.details).length > 0;
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
  const moves = file.type.startsWith("video/"); // a GIF is shown as a picture, which moves too
  byId("preview").hidden = moves;
  byId("clip").hidden = !moves;
  emptyFrame();
  shownElement().src = session.preview;
  byId("preview").alt = `The ${medium()} ${file.name}`;
  byId("clip").setAttribute("aria-label", `The video ${file.name}`);
  run();
}

/** Forgets the photo, as a model that takes videos cannot be asked about it, nor the other way round. */
function putAway() {
  if (session.preview) URL.revokeObjectURL(session.preview);
  session.photo = session.preview = null;
  byId("photo-frame").hidden = true;
  emptyFrame();
  enter("idle");
}

function emptyFrame() {
  byId("preview").removeAttribute("src");
  byId("clip").removeAttribute("src");
  byId("clip").load(); // a video goes on playing until then
}

function shownElement() {
  return byId(byId("clip").hidden ? "preview" : "clip");
}

/** (width, height) in pixels of what is shown; zeros where the browser cannot tell. */
function shownSize() {
  const shown = shownElement();
  return shown instanceof HTMLVideoElement
    ? [shown.videoWidth, shown.videoHeight]
    : [shown.naturalWidth, shown.naturalHeight];
}

/** Small photos grow and large ones shrink to one size, so that the page does not jump from photo to photo. */
function previewLoaded() {
  const [width, height] = shownSize();
  if (!width) return previewFailed(); // a file of sound alone plays as a video
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

/** Dims what the model's centre crop leaves out of the photo; of a video, whose controls are there too, it is said. */
function showRegion() {
  const [width, height] = shownSize();
  if (byId("photo-frame").hidden || !width) return;
  const region = session.details ? visibleRegion(width, height, session.details.preprocessing) : null;
  const moves = !byId("clip").hidden;
  byId("crop").hidden = !region || moves;
  if (region) for (const [side, share] of Object.entries(region)) byId("crop").style[side] = `${100 * share}%`;
  const { duration } = byId("clip");
  const facts = [session.photo.name, `${width} × ${height}`];
  if (moves && Number.isFinite(duration)) facts.push(`${duration.toFixed(1)} s`);
  let sees = region ? "; the model sees the bright part" : "";
  if (region && moves) sees = `; the model sees the middle ${middle(region)}`;
  byId("crop-note").textContent = facts.join(", ") + sees;
}

function middle({ width, height }) {
  return width < height ? `${percent(width)} of its width` : `${percent(height)} of its height`;
}

// ------------------------------------------------------------------------------------------------------------- run

/** One round: everything about the photo; ends in done or error, or is aborted by the next round. */
async function run() {
  session.requests?.abort();
  const requests = new AbortController();
  session.requests = requests;
  const { photo } = session;
  clearOverlay();
  enter("working");
  view().placeholders(session.details);
  announce(`Working on the ${medium()}`);
  try {
    await checkReadable(photo);
    if (!session.details) await loadModels();
    const { sentence, commands } = await view().ask({
      photo,
      details: session.details,
      model: modelParameter(),
      threshold: Number(byId("threshold").value) / 100,
      signal: requests.signal,
      announce,
      fail,
    });
    if (requests.signal.aborted) return;
    showCommands(photo, commands);
    enter("done");
    announce(sentence);
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
    throw new ServerError(`${photo.name} cannot be read; choose a ${medium()} file.`, 0, "unreadable");
  }
}

function showCommands(photo, requests) {
  byId("commands").replaceChildren(commandTabs(photo.name, requests, hasApiKey()));
}

// ---------------------------------------------------------------------------------------------------------- events

function showThreshold() {
  byId("threshold-text").textContent = `${byId("threshold").value} %`;
}

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
        new ServerError("What was dropped is not a file; save it first, then drop it here.", 0, "not_a_file"),
      );
  });
}

function listen() {
  byId("preview").addEventListener("load", previewLoaded);
  byId("preview").addEventListener("error", previewFailed);
  byId("clip").addEventListener("loadedmetadata", previewLoaded);
  byId("clip").addEventListener("error", previewFailed);
  byId("photo").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that picking the same photo again is a change too
    takeFirst(files);
  });
  window.addEventListener("paste", (event) => takeFirst(event.clipboardData?.files ?? []));
  listenToDrops();
  byId("model").addEventListener("change", async (event) => {
    session.requests?.abort();
    const before = medium();
    try {
      await chooseModel(event.target.value);
      if (medium() !== before) putAway();
      else if (session.photo) run();
    } catch (error) {
      fail(error);
    }
  });
  byId("overlay-shown").addEventListener("change", (event) => {
    byId("overlay").hidden = !event.target.checked;
  });
  byId("threshold").addEventListener("input", showThreshold);
  byId("threshold").addEventListener("change", () => {
    if (session.photo) run();
  });
  showThreshold();
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
