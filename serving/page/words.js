/** What went wrong and what to do, in a person's words. What the server says itself stays beside it in small print. */

const PHOTO_KINDS = "JPEG, PNG, WebP, BMP, GIF or TIFF";
const VIDEO_KINDS = "MP4, WebM, MOV, AVI, MKV or GIF";

/** By the code of an error, then by its status: [what happened, what to do]; `again` whether the same may work later. */
const BY_CODE = {
  unreachable: () => ["The server did not answer.", "It may have stopped, or the connection is down.", "again"],
  body_too_large: (medium) => [`This ${medium} is too large for the server.`, "Choose a smaller file."],
  image_too_large: () => ["This photo has more pixels than the server takes.", "Make it smaller, then choose it again."],
  video_too_large: () => ["This video is larger than the server takes.", "Choose one with smaller frames."],
  video_too_long: () => ["This video is too long for the server.", "Cut it, then choose it again."],
  empty_body: () => ["This file is empty.", "Choose another one."],
  image_truncated: () => ["The end of this photo is missing.", "Copy or download it again."],
  video_truncated: () => ["The end of this video is missing.", "Copy or download it again."],
  image_corrupt: () => ["This photo is damaged.", "Copy or download it again, or choose another one."],
  video_corrupt: () => ["This video is damaged.", "Copy or download it again, or choose another one."],
  not_an_image: () => ["This file is not a photo.", `Choose a ${PHOTO_KINDS} file.`],
  not_a_video: () => ["This file is not a video.", `Choose a ${VIDEO_KINDS} file.`],
  still_image: () => ["This file is a photo, and the model looks at videos.", `Choose a ${VIDEO_KINDS} file.`],
  aspect_ratio: (medium) => [`This ${medium} is too long and narrow.`, "Cut out the part that matters."],
  unauthorized: () => ["This key was not accepted.", "Check it, and give it again above."],
  too_many_wrong_keys: () => ["Too many wrong keys came from here.", "Wait, then try the right key.", "again"],
  draining: () => ["The server is shutting down.", "Another one may take over.", "again"],
  not_ready: () => ["The server is not ready yet.", "It is starting, or its model has a fault.", "again"],
};
const BY_STATUS = {
  401: BY_CODE.unauthorized,
  403: () => ["The server does not answer this page.", "Open the page at the server's own address."],
  404: () => ["The server has no such address or model.", "Reload the page."],
  408: () => ["Sending the file took too long.", "Try a faster connection or a smaller file.", "again"],
  413: BY_CODE.body_too_large,
  415: (medium) => [
    `The server cannot read this kind of ${medium}.`,
    `Save it as ${medium === "video" ? VIDEO_KINDS : PHOTO_KINDS}, then choose it again.`,
  ],
  421: () => ["The server does not answer to this name.", "Open the page at the server's own address."],
  429: () => ["Too many requests came from here.", "Wait a moment.", "again"],
  500: () => ["The server failed.", "If it fails again, tell whoever runs it the request's number below.", "again"],
  502: () => ["The server behind this address does not answer.", "It may be restarting.", "again"],
  503: () => ["The server is busy.", "Wait a moment.", "again"],
  504: () => ["The server took too long.", "It may be busy.", "again"],
};

/**
 * `error` as {what, advice, again, details}: two sentences, whether trying again may help, and the small print.
 * A sentence of this page's own (an error without a status) is shown as it is.
 */
export function errorInWords(error, medium) {
  const find = BY_CODE[error.code] ?? BY_STATUS[error.status];
  if (!find) return { what: error.message, advice: "", again: false, details: smallPrint(error, false) };
  const [what, advice, again] = find(medium);
  const wait = error.retryAfter ? ` Try again in ${seconds(error.retryAfter)}.` : "";
  return { what, advice: advice + wait, again: Boolean(again), details: smallPrint(error, true) };
}

/** `text`, which may be the server's, with a capital before it and a full stop after it. */
export function asSentence(text) {
  return text && `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;
}

/** Status, code and number of the request, and with `said` the server's own sentence. */
function smallPrint({ status, code, requestId, message }, said) {
  const facts = [status ? `${status} ${code ?? ""}`.trim() : null, requestId ? `request ${requestId}` : null];
  return [...facts, said ? message : null].filter(Boolean).join(" · ");
}

function seconds(count) {
  return count === 1 ? "1 second" : `${count} seconds`;
}
