/** Reading safetensors: 8 bytes little-endian header length, a JSON header, then the raw little-endian data. */

const READERS = {
  F32: { bytes: 4, read: (view, offset) => view.getFloat32(offset, true) },
  F16: { bytes: 2, read: (view, offset) => halfToNumber(view.getUint16(offset, true)) },
};

/**
 * The tensors of a safetensors file as a Map from name to {shape, data}, data a Float32Array in row-major order.
 * Throws an Error with one sentence when the bytes are not such a file, or hold another type than F32 and F16.
 */
export function parseSafetensors(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 8) throw new Error(`A safetensors file has at least 8 bytes; got ${buffer.byteLength}.`);
  const headerBytes = Number(view.getBigUint64(0, true));
  if (headerBytes > buffer.byteLength - 8) {
    throw new Error(`The safetensors header claims ${headerBytes} bytes of a file of ${buffer.byteLength}.`);
  }
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, headerBytes)));
  const tensors = new Map();
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") tensors.set(name, readTensor(view, 8 + headerBytes, name, entry));
  }
  return tensors;
}

function readTensor(view, dataStart, name, { dtype, shape, data_offsets: [begin, end] }) {
  const reader = READERS[dtype];
  if (!reader) throw new Error(`Tensor ${name} has type ${dtype}; this page reads F32 and F16.`);
  const length = shape.reduce((product, side) => product * side, 1);
  if (end - begin !== length * reader.bytes || dataStart + end > view.byteLength) {
    throw new Error(`Tensor ${name} of shape ${shape.join(" x ")} does not fit its ${end - begin} bytes.`);
  }
  const data = new Float32Array(length);
  for (let index = 0; index < length; index++)
    data[index] = reader.read(view, dataStart + begin + index * reader.bytes);
  return { shape, data };
}

/** IEEE 754 half precision to a number. */
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
