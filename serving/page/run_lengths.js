/** COCO's compressed run lengths: runs of 0 and 1 in turn, down the columns of a mask, 0 first. */

/** The lengths of the runs. */
export function decodeRunLengths(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = text.charCodeAt(at++) - 48;
      value += (code & 0x1f) * 2 ** shift;
      shift += 5;
    } while (code & 0x20);
    if (code & 0x10) value -= 2 ** shift; // the highest bit of the last character is the sign
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** Pixels of the mask that are 1. */
export function areaOf(runs) {
  return runs.reduce((sum, run, index) => (index % 2 === 1 ? sum + run : sum), 0);
}

/** The mask as bytes of 0 and 1, one column after the other: `height` x `width` of them. */
export function maskOf(runs, height, width) {
  const mask = new Uint8Array(height * width);
  let at = 0;
  runs.forEach((run, index) => {
    if (index % 2 === 1) mask.fill(1, at, at + run);
    at += run;
  });
  return mask;
}
