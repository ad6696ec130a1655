import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from convmae_deploy.bundle.bill_of_materials import bill_of_materials
from convmae_deploy.cli import main
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle, make_detection_bundle, make_video_bundle


@pytest.mark.parametrize("make", [make_bundle, make_detection_bundle, make_video_bundle])
def test_the_bill_of_materials_is_valid_by_the_standards_own_schema(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    manifest = load_bundle(make(tmp_path / "bundle")).manifest
    document = json.dumps(bill_of_materials(manifest))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.replace("SHA-256", "SHA-1000")) is not None


def test_info_prints_what_the_model_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(SystemExit) as ended:
        main(["info", str(bundle), "--sbom"])
    assert not ended.value.code
    found, manifest = json.loads(capsys.readouterr().out), load_bundle(bundle).manifest
    (graph,) = found["components"]
    assert graph["hashes"] == [{"alg": "SHA-256", "content": sha256_of(bundle / "model.onnx")}]
    model = found["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", manifest.name)
    assert model["licenses"] == [{"license": {"name": manifest.licence.name}}]
    assert model["modelCard"]["modelParameters"]["task"] == "classification"
    assert {tool["name"]: tool["version"] for tool in found["metadata"]["tools"]["components"]} == manifest.tools
    assert bill_of_materials(manifest) == bill_of_materials(manifest)
