from pathlib import Path

import pytest
from pydantic import ValidationError

from convmae_deploy.runtime.manifest import Manifest
from tests.bundle_factory import make_bundle


@pytest.mark.parametrize("missing", ["logits", "pooled", "e1", "e4"])
def test_a_classifier_without_one_of_its_outputs_is_refused(tmp_path: Path, missing: str) -> None:
    text = (make_bundle(tmp_path) / "manifest.json").read_text(encoding="utf-8")
    fields = Manifest.model_validate_json(text).model_dump()
    del fields["outputs"][missing]
    with pytest.raises(ValidationError, match=f"missing: {missing}"):
        Manifest.model_validate(fields)
