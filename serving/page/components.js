/**
 * A feature map as a picture: its first three principal components over the cells, as red, green and blue.
 *
 * Legend: C channels, N cells (H x W), M the smaller of the two, K vectors iterated on.
 */

const COMPONENTS = 3;
const BLOCK = 8; // vectors iterated on; more than three, so that a close fourth does not slow the third down
const MAX_ITERATIONS = 300;
const SETTLED = 1e-9; // largest relative change of the leading eigenvalues at which the iteration stops
// Below this share of the first variance a component is rounding of float32, which stretching would show as noise.
const NEGLIGIBLE = 1e-9;

/**
 * The leading principal components of `data`, a (C, N) array in row-major order.
 *
 * Returns {scores, variances, total}: scores holds three Float64Arrays of N projections, all zero where the data has no
 * such component; variances their variances; total the variance of all channels together. Signs are fixed so that the
 * channel with the largest weight in a component has a positive one, hence equal maps give equal pictures.
 */
export function principalComponents(data, channels, cells) {
  const centred = centre(data, channels, cells);
  const overChannels = channels <= cells;
  const size = overChannels ? channels : cells;
  const gram = overChannels
    ? rowProducts(centred, channels, cells)
    : rowProducts(transpose(centred, channels, cells), cells, channels);
  let total = 0;
  for (let index = 0; index < size; index++) total += gram[index * size + index];
  const { values, vectors } = leadingEigenpairs(gram, size);
  const scores = [];
  const variances = [];
  for (let k = 0; k < COMPONENTS; k++) {
    const present = k < values.length && values[0] > 0 && values[k] > NEGLIGIBLE * values[0];
    scores.push(present ? project(centred, channels, cells, vectors[k], overChannels) : new Float64Array(cells));
    variances.push(present ? values[k] / cells : 0);
  }
  return { scores, variances, total: total / cells };
}

/**
 * `scores`, three arrays of N values, as RGBA bytes: each stretched so that its 1st and 99th percentiles become 0 and
 * 255. A component without variation is mid-grey.
 */
export function toPixels(scores) {
  const cells = scores[0].length;
  const pixels = new Uint8ClampedArray(cells * 4).fill(255);
  scores.forEach((values, band) => {
    const sorted = Float64Array.from(values).sort();
    const low = percentile(sorted, 0.01);
    const range = percentile(sorted, 0.99) - low;
    for (let cell = 0; cell < cells; cell++) {
      pixels[cell * 4 + band] = range > 0 ? (255 * (values[cell] - low)) / range : 128;
    }
  });
  return pixels;
}

/** The value at `share` of a sorted array, linear between neighbours. */
function percentile(sorted, share) {
  const position = share * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
}

/** (C, N) minus each channel's mean, in float64. */
function centre(data, channels, cells) {
  const centred = Float64Array.from(data);
  for (let channel = 0; channel < channels; channel++) {
    const row = centred.subarray(channel * cells, (channel + 1) * cells);
    let sum = 0;
    for (let cell = 0; cell < cells; cell++) sum += row[cell];
    const mean = sum / cells;
    for (let cell = 0; cell < cells; cell++) row[cell] -= mean;
  }
  return centred;
}

function transpose(matrix, rows, columns) {
  const transposed = new Float64Array(matrix.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) transposed[column * rows + row] = matrix[row * columns + column];
  }
  return transposed;
}

/** matrix @ matrix.T of a (rows, columns) matrix: symmetric (rows, rows). */
function rowProducts(matrix, rows, columns) {
  const products = new Float64Array(rows * rows);
  for (let first = 0; first < rows; first++) {
    const a = matrix.subarray(first * columns, (first + 1) * columns);
    for (let second = first; second < rows; second++) {
      const product = dot(a, matrix.subarray(second * columns, (second + 1) * columns));
      products[first * rows + second] = product;
      products[second * rows + first] = product;
    }
  }
  return products;
}

function dot(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index] * b[index];
  return sum;
}

/**
 * The largest eigenvalues of the symmetric, positive semi-definite `gram` (M, M) with their unit vectors, in descending
 * order. Subspace iteration from a fixed start, then a small dense eigenproblem in the subspace (Rayleigh-Ritz).
 */
function leadingEigenpairs(gram, size) {
  const count = Math.min(BLOCK, size);
  let vectors = orthonormal(startingVectors(count, size));
  let values = new Float64Array(count);
  for (let iteration = 0; iteration < MAX_ITERATIONS; iteration++) {
    const images = vectors.map((vector) => multiply(gram, vector));
    const small = vectors.map((vector) => images.map((image) => dot(vector, image)));
    const { eigenvalues, eigenvectors } = denseEigenpairs(small);
    const leading = eigenvalues.slice(0, COMPONENTS);
    const change = Math.max(...leading.map((value, k) => Math.abs(value - values[k])));
    values = eigenvalues;
    if (!(change > SETTLED * eigenvalues[0])) {
      return { values, vectors: eigenvectors.map((weights) => combine(vectors, weights)) };
    }
    vectors = orthonormal(eigenvectors.map((weights) => combine(images, weights)));
  }
  return { values, vectors };
}

/** Fixed pseudo-random vectors (a linear congruential generator), so that equal maps always give equal pictures. */
function startingVectors(count, size) {
  let state = 1;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  return Array.from({ length: count }, () => Float64Array.from({ length: size }, next));
}

/** Modified Gram-Schmidt, twice, which keeps nearly dependent vectors orthogonal; a vanished vector stays zero. */
function orthonormal(vectors) {
  vectors.forEach((vector, index) => {
    const before = Math.sqrt(dot(vector, vector));
    for (let pass = 0; pass < 2; pass++) {
      for (let other = 0; other < index; other++) addScaled(vector, vectors[other], -dot(vector, vectors[other]));
    }
    const length = Math.sqrt(dot(vector, vector));
    const scale = length > 1e-13 * before ? 1 / length : 0;
    for (let entry = 0; entry < vector.length; entry++) vector[entry] *= scale;
  });
  return vectors;
}

function addScaled(target, source, factor) {
  for (let index = 0; index < target.length; index++) target[index] += factor * source[index];
}

function multiply(matrix, vector) {
  const size = vector.length;
  const product = new Float64Array(size);
  for (let row = 0; row < size; row++) product[row] = dot(matrix.subarray(row * size, (row + 1) * size), vector);
  return product;
}

function combine(vectors, weights) {
  const sum = new Float64Array(vectors[0].length);
  vectors.forEach((vector, index) => addScaled(sum, vector, weights[index]));
  return sum;
}

/** All eigenpairs of a small symmetric matrix (rows of numbers) by Jacobi rotations, in descending order. */
function denseEigenpairs(rows) {
  const size = rows.length;
  const matrix = rows.map((row) => [...row]);
  const vectors = rows.map((_, index) => rows.map((_, other) => (index === other ? 1 : 0)));
  for (let sweep = 0; sweep < 12; sweep++) {
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) rotate(matrix, vectors, p, q);
    }
  }
  const order = rows.map((_, index) => index).sort((a, b) => matrix[b][b] - matrix[a][a]);
  return {
    eigenvalues: order.map((index) => matrix[index][index]),
    eigenvectors: order.map((index) => vectors[index]),
  };
}

/** One Jacobi rotation that makes matrix[p][q] zero; `vectors` holds one eigenvector a row. */
function rotate(matrix, vectors, p, q) {
  if (Math.abs(matrix[p][q]) <= 1e-300) return;
  const theta = (matrix[q][q] - matrix[p][p]) / (2 * matrix[p][q]);
  const tangent = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const cosine = 1 / Math.sqrt(tangent * tangent + 1);
  const sine = tangent * cosine;
  for (const row of matrix) [row[p], row[q]] = [cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]];
  for (const rows of [matrix, vectors]) {
    const [first, second] = [rows[p], rows[q]];
    rows[p] = first.map((value, index) => cosine * value - sine * second[index]);
    rows[q] = first.map((value, index) => sine * value + cosine * second[index]);
  }
}

/** The N projections on one component; its unit vector is given over channels, or over cells where those are fewer. */
function project(centred, channels, cells, vector, overChannels) {
  const weights = overChannels ? Float64Array.from(vector) : new Float64Array(channels);
  if (!overChannels) {
    for (let channel = 0; channel < channels; channel++) {
      weights[channel] = dot(centred.subarray(channel * cells, (channel + 1) * cells), vector);
    }
    orthonormal([weights]);
  }
  const largest = weights.reduce((best, weight) => (Math.abs(weight) > Math.abs(best) ? weight : best), 0);
  const sign = largest < 0 ? -1 : 1;
  const scores = new Float64Array(cells);
  for (let channel = 0; channel < channels; channel++) {
    addScaled(scores, centred.subarray(channel * cells, (channel + 1) * cells), sign * weights[channel]);
  }
  return scores;
}
