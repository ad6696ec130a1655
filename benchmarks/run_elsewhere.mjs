// One graph in onnxruntime-node or -web: node run_elsewhere.mjs PACKAGE GRAPH FOLDER
// FOLDER/input.json says the name and the shape of the input, FOLDER/input.bin holds its float32 values;
// each output goes to FOLDER/NAME.bin, its type and shape to FOLDER/outputs.json.
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [name, graph, folder] = process.argv.slice(2);
const require = createRequire(join(process.cwd(), "package.json"));
const library = await import(pathToFileURL(require.resolve(name)));
const ort = library.default ?? library;
const { input, shape } = JSON.parse(await readFile(join(folder, "input.json"), "utf8"));
const bytes = await readFile(join(folder, "input.bin"));
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(name === "onnxruntime-web" ? await readFile(graph) : graph);
const outputs = await session.run({ [input]: new ort.Tensor("float32", values, shape) });
const described = {};
for (const [key, tensor] of Object.entries(outputs)) {
  const data = tensor.data;
  await writeFile(join(folder, `${key}.bin`), Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  described[key] = { type: tensor.type, shape: tensor.dims };
}
await writeFile(join(folder, "outputs.json"), JSON.stringify(described));
