/** OpenAPI schemas in words and as examples; references into the document's components are followed. */

const MAX_DEPTH = 8; // where a schema that contains itself is cut off

/** `node`, or what its `$ref` points to in `document`. */
export function resolve(document, node) {
  let target = node;
  for (let hops = 0; target?.$ref && hops < MAX_DEPTH; hops++) {
    const steps = target.$ref.replace(/^#\//, "").split("/");
    target = steps.reduce((at, step) => at?.[step.replaceAll("~1", "/").replaceAll("~0", "~")], document);
  }
  return target ?? {};
}

/**
 * A value that fits `schema`: its own example where it has one, else one made of its types. With `brief`, objects that
 * say which properties they require have no others.
 */
export function exampleOf(document, schema, brief = false, depth = 0) {
  const found = resolve(document, schema);
  if (depth > MAX_DEPTH) return null;
  if ("example" in found) return found.example;
  if (Array.isArray(found.examples) && found.examples.length > 0) return found.examples[0];
  if ("const" in found) return found.const;
  if (found.default !== undefined && found.default !== null) return found.default;
  if (found.enum) return found.enum[0];
  const alternatives = found.anyOf ?? found.oneOf;
  if (alternatives) return exampleOf(document, alternatives.find((one) => one.type !== "null") ?? {}, brief, depth + 1);
  if (found.allOf) return Object.assign({}, ...found.allOf.map((part) => exampleOf(document, part, brief, depth + 1)));
  return exampleOfType(document, found, brief, depth);
}

function exampleOfType(document, schema, brief, depth) {
  const type = typesOf(schema)[0] ?? (schema.properties ? "object" : null);
  if (type === "object") {
    const wanted = brief && schema.required ? schema.required : Object.keys(schema.properties ?? {});
    const entries = Object.entries(schema.properties ?? {}).filter(([name]) => wanted.includes(name));
    if (entries.length === 0 && typeof schema.additionalProperties === "object") {
      return { name: exampleOf(document, schema.additionalProperties, brief, depth + 1) };
    }
    return Object.fromEntries(
      entries.map(([name, property]) => [name, exampleOf(document, property, brief, depth + 1)]),
    );
  }
  if (type === "array") {
    const items = schema.prefixItems ?? [schema.items ?? {}];
    return items.map((item) => exampleOf(document, item, brief, depth + 1));
  }
  if (type === "string") return "string";
  if (type === "integer") return schema.minimum ?? 1;
  if (type === "number") return schema.minimum ?? 0.5;
  if (type === "boolean") return true;
  return null;
}

/** An example of a media type's content: its own, or one made of its schema. */
export function mediaExample(document, media, brief = false) {
  if (media.example !== undefined) return media.example;
  const [named] = Object.values(media.examples ?? {});
  return named ? resolve(document, named).value : exampleOf(document, media.schema ?? {}, brief);
}

/** Whether a schema is a file's bytes, or a list of such files. */
export function isFile(document, schema) {
  const found = resolve(document, schema ?? {});
  if (typesOf(found)[0] === "array") return isFile(document, found.items);
  return found.format === "binary" || found.contentMediaType !== undefined;
}

/** A short description of a schema's type: "integer, 1 to 1000", "e1 | e2", "list of string". */
export function typeInWords(document, schema) {
  const found = resolve(document, schema);
  if (found.enum) return found.enum.join(" | ");
  if ("const" in found) return String(found.const);
  const alternatives = found.anyOf ?? found.oneOf;
  if (alternatives) {
    const words = alternatives.filter((one) => one.type !== "null").map((one) => typeInWords(document, one));
    return [...new Set(words)].join(" or ");
  }
  const types = typesOf(found);
  if (types[0] === "array") return `list of ${typeInWords(document, found.items ?? {})}`;
  const name = types[0] === "string" && found.format ? `string (${found.format})` : types.join(" or ") || "any";
  return name + rangeInWords(found);
}

function typesOf(schema) {
  return [schema.type ?? []].flat().filter((type) => type !== "null");
}

function rangeInWords({ minimum, maximum }) {
  if (minimum !== undefined && maximum !== undefined) return `, ${minimum} to ${maximum}`;
  if (minimum !== undefined) return `, at least ${minimum}`;
  if (maximum !== undefined) return `, at most ${maximum}`;
  return "";
}
