"""KServe's own client, unchanged, against the running server; it has an environment of its own, see the Makefile."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.serving.running_server import ROOT, RunningServer
from tests.serving.sample_images import jpeg

PYTHON = ROOT / ".venv" / "kserve" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="needs `make .venv/.kserve`")
def test_both_protocols_are_answered(server: RunningServer, tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(jpeg())
    command = [str(PYTHON), str(Path(__file__).with_name("kserve_client.py")), server.url, str(photo)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout.splitlines()[-1])
    assert all(found[name] for name in ("live", "ready", "model", "first"))
    assert found["json"].keys() == found["binary"].keys() == {"logits", "pooled"}
    for name in ("logits", "pooled"):
        np.testing.assert_allclose(found["json"][name], found["binary"][name], rtol=1e-5)
    expected = server.request("/v1/classify", jpeg()).json()
    assert found["result"] == expected and found["predictions"] == [expected]
