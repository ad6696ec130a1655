"""The application inside BentoML's, in a process of its own: BentoML's configuration is global."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.running_server import ROOT, caller_environment

PROGRAM = """
import json
import uvicorn
from starlette.testclient import TestClient
from serving.service import SERVICE, api
from tests.serving.sample_images import jpeg

with TestClient(SERVICE.to_asgi()) as client:
    paths = ["/livez", "/readyz", "/healthz", "/docs.json", "/schema.json", "/metrics", "/"]
    paths += ["/static_content/x", "/nothing"]
    answers = {path: [client.get(path).status_code, client.get(path).headers["content-type"]] for path in paths}
    answers["classify"] = [client.post("/v1/classify", content=jpeg()).status_code, ""]
    api.guard.draining = True
    answers["draining"] = [client.get("/readyz").status_code, client.get("/readyz").json()["error"]["code"]]
answers["believed"] = [uvicorn.Config(None).forwarded_allow_ips, ""]
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_our_application_answers_every_path_inside_bentoml(bundle: Path) -> None:
    settings = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_DEVICE": "cpu", "CONVMAE_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=caller_environment() | settings, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    answers = json.loads(finished.stdout.splitlines()[-1])
    statuses = {path: status for path, (status, _) in answers.items()}
    assert statuses == {
        "/livez": 200,
        "/readyz": 200,
        "/healthz": 200,
        "/docs.json": 404,
        "/schema.json": 200,
        "/metrics": 200,
        "/": 200,
        "/static_content/x": 404,
        "/nothing": 404,
        "classify": 200,
        "draining": 503,
        "believed": "",  # no proxy is, under BentoML's worker, but by our setting
    }
    assert answers["/nothing"][1] == "application/json"
    assert answers["draining"][1] == "not_ready"
