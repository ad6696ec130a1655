/** The colour of a class, the same as in the pictures that `convmae predict` draws. */

const GOLDEN = 0.618034;
const TONES = [
  [0.85, 0.95],
  [0.6, 0.7],
  [0.4, 1.0],
]; // saturation and brightness, in turn
const LIGHT_FROM = 140;

/** [red, green, blue] from 0 to 255 of the class with that number; a negative one is grey. */
export function classColour(index) {
  if (index < 0) return [128, 128, 128];
  const [saturation, brightness] = TONES[Math.floor(index / 5) % TONES.length];
  const hue = ((index * GOLDEN) % 1) * 6;
  return [5, 3, 1].map((offset) => {
    const distance = (offset + hue) % 6;
    const share = Math.max(0, Math.min(distance, 4 - distance, 1));
    return Math.round(255 * brightness * (1 - saturation * share));
  });
}

/** Black or white, whichever is read better on a colour. */
export function textColour([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue >= LIGHT_FROM ? "#101010" : "#ffffff";
}
