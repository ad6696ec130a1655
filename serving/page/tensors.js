/** Reading safetensors: 8 bytes little-endian header length, a JSON header, then the raw little-endian data. */

/**
 * The tensors of a safetensors file as a Map from name to {shape, data}, data a Float32Array in row-major order.
 * Throws an Error with one sentence when the bytes are not such a file, or hold another type than F32.
 */
export function parseSafetensors(buffer) {
  if (buffer.byteLength < 8) throw new Error(`A safetensors file has at least 8 bytes; got ${buffer.byteLength}.`);
  const headerBytes = Number(new DataView(buffer).getBigUint64(0, true));
  if (headerBytes > buffer.byteLength - 8) {
    throw new Error(`The safetensors header claims ${headerBytes} bytes of a file of ${buffer.byteLength}.`);
  }
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, headerBytes)));
  const entries = Object.entries(header).filter(([name]) => name !== "__metadata__");
  return new Map(entries.map(([name, entry]) => [name, readTensor(buffer, 8 + headerBytes, name, entry)]));
}

function readTensor(buffer, dataStart, name, { dtype, shape, data_offsets: [begin, end] }) {
  if (dtype !== "F32") throw new Error(`Tensor ${name} has type ${dtype}; this page reads F32.`);
  const length = shape.reduce((product, side) => product * side, 1);
  if (end - begin !== 4 * length || dataStart + end > buffer.byteLength) {
    throw new Error(`Tensor ${name} of shape ${shape.join(" x ")} does not fit its ${end - begin} bytes.`);
  }
  // Every machine with a browser is little-endian, as the format is.
  return { shape, data: new Float32Array(buffer.slice(dataStart + begin, dataStart + end)) };
}
