"""What a bundle is made of, for programs: CycloneDX 1.6 in JSON with a model card, as its ML-BOM has it.

The standard: cyclonedx.org/docs/1.6/json. All of it stands in the manifest; the same manifest gives the same document.
"""

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from convmae_deploy.bundle.manifest import KIT_NAME, BundleFile, Manifest, StoredFile

SPECIFICATION = "1.6"
PAPER = "https://arxiv.org/abs/2205.03892"
OURS = "convmae_deploy"  # prefix of properties for which the standard has no field


def bill_of_materials(manifest: Manifest) -> dict[str, Any]:
    """The document, ready for `json.dumps`: the model, its files by their hashes, the packages that made them."""
    files = [
        component
        for name, file in manifest.files.items()
        for component in (_graph(name, file), *(_stored(part, stored) for part, stored in file.weights.items()))
    ]
    files += [] if manifest.conformance is None else [_stored(KIT_NAME, manifest.conformance)]
    tools = [_package(name, version) for name, version in manifest.tools.items()]
    content = uuid5(NAMESPACE_URL, manifest.model_dump_json())
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{content}",
        "version": 1,
        "metadata": {"tools": {"components": tools}, "component": _model(manifest)},
        "components": files,
        "dependencies": [{"ref": "model", "dependsOn": [file["bom-ref"] for file in files]}],
    }


def _model(manifest: Manifest) -> dict[str, Any]:
    spec = manifest.input
    shape = ", ".join(map(str, ("B", *spec.shape)))
    outputs = [
        {"format": f"{name}: {output.dtype} ({', '.join(map(str, ('B', *output.shape)))})"}
        for name, output in manifest.outputs.items()
    ]
    steps = " ".join(manifest.preprocessing.steps())
    facts = {
        "variant": manifest.variant,
        "preprocessing": steps,
        **{f"provenance:{label}": text for label, text in manifest.provenance.items()},
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "licenses": [{"license": {"name": manifest.licence.name}}],
        "externalReferences": [{"type": "documentation", "url": PAPER}],
        "modelCard": {
            "modelParameters": {
                "task": manifest.task,
                "architectureFamily": "ConvMAE",
                "modelArchitecture": manifest.variant,
                "inputs": [{"format": f"{spec.name}: {spec.dtype} ({shape}), B to {spec.max_batch}"}],
                "outputs": outputs,
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(manifest)},
        },
        "properties": _properties(facts),
    }


def _metrics(manifest: Manifest) -> list[dict[str, str]]:
    """What was measured of each file: its largest error against PyTorch, and what int8 left of the task's metric."""
    metrics = []
    for name, file in manifest.files.items():
        if file.numerics is not None:
            for output, numbers in file.numerics.outputs.items():
                kind = f"largest absolute difference of {output} to {file.numerics.reference}"
                metrics.append({"type": kind, "value": f"{numbers.max_abs:g}", "slice": name})
        if file.quantisation is not None:
            metrics.append({"type": file.quantisation.metric, "value": f"{file.quantisation.int8:g} %", "slice": name})
    return metrics


def _graph(name: str, file: BundleFile) -> dict[str, Any]:
    verified = "no" if file.numerics is None else ("yes" if file.numerics.passed else "failed")
    facts = {"precision": file.precision, "opset": str(file.opset), "verified": verified}
    return _stored(name, file) | {"mime-type": "application/octet-stream", "properties": _properties(facts, file)}


def _stored(name: str, file: StoredFile) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "properties": _properties({}, file),
    }


def _package(name: str, version: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": f"tool:{name}", "name": name, "version": version}


def _properties(facts: dict[str, str], file: StoredFile | None = None) -> list[dict[str, str]]:
    stated = facts if file is None else {**facts, "bytes": str(file.bytes)}
    return [{"name": f"{OURS}:{name}", "value": value} for name, value in stated.items()]
