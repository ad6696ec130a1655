/** What a model's details mean for the page: its feature levels, the part of a photo that it sees, facts to show. */

/** The outputs of `details` that are feature maps, finest first: [{name, stride, shape}]; shape (C, ..., H, W). */
export function featureLevels(details) {
  return Object.entries(details.outputs ?? {})
    .filter(([name, output]) => name !== "logits" && output.stride && output.shape.length >= 3)
    .map(([name, { stride, shape }]) => ({ name, stride, shape }))
    .sort((first, second) => first.stride - second.stride);
}

/**
 * The centre crop that the model sees of a photo of `width` x `height` pixels, as shares {left, top, width, height} of
 * the photo; null where it sees all of it, or where the server does not say.
 */
export function visibleRegion(width, height, preprocessing) {
  if (!preprocessing?.crop) return null;
  const { resize, crop } = preprocessing; // (height, width) each; the resized photo covers `resize`
  const scale = Math.max(resize[0] / height, resize[1] / width);
  const shareHigh = Math.min(1, crop[0] / (height * scale));
  const shareWide = Math.min(1, crop[1] / (width * scale));
  if (shareHigh > 0.995 && shareWide > 0.995) return null;
  return { left: (1 - shareWide) / 2, top: (1 - shareHigh) / 2, width: shareWide, height: shareHigh };
}

/** Facts about a model as [term, text] pairs; what the server does not say is left out. */
export function modelFacts(details) {
  const levels = featureLevels(details);
  const { shape = [] } = details.input ?? {}; // (3, height, width), or (3, frames, height, width)
  const [height, width] = shape.slice(-2);
  const frames = shape.length === 4 ? `${shape[1]} frames of ` : "";
  return [
    ["Name", details.id],
    ["Task", details.task],
    ["Variant", details.variant],
    [details.preprocessing?.window ? "Windows" : "Input", height ? `${frames}${height} × ${width} pixels` : null],
    ["Sampling", frames ? samplingSentence(details.preprocessing) : null],
    ["Classes", details.labels?.length || null],
    ["Feature levels", levels.length ? levelsSentence(levels) : null],
    ["Compared with PyTorch", numericsSentence(details)],
    ["Licence of the weights", details.licence?.name],
  ].filter(([, text]) => text !== null && text !== undefined);
}

/** Which frames of a video make a clip. */
function samplingSentence({ frames, stride }) {
  if (!stride) return `one frame from each of ${frames} equal parts`;
  return stride === 1 ? "frames in a row" : `one frame in ${stride}`;
}

function levelsSentence(levels) {
  const list = (field) => levels.map((level) => level[field]).join(", ");
  return `${list("name")} at strides ${list("stride")}`;
}

/** The outcome of the export's comparison for the graph that is served. */
function numericsSentence({ numerics }) {
  if (!numerics) return "not verified";
  const worst = Math.max(...Object.values(numerics.outputs).map((output) => output.max_rel));
  return `${numerics.passed ? "passed" : "failed"}, largest relative error ${worst ? worst.toExponential(1) : 0}`;
}
