"""Models that come and go while the server runs."""

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from convmae_deploy.tasks.base import Predictor
from serving.api.models import Models, find_any
from serving.app import create_app, in_thread
from serving.settings import Settings
from tests.bundle_factory import make_bundle
from tests.serving.conftest import open_on_cpu
from tests.serving.sample_images import jpeg
from tests.waiting import PATIENCE_SECONDS, wait_for

KEY = "0123456789abcdef-admin"
ADMIN = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def folder(tmp_path: Path, bundle: Path, second_bundle: Path) -> Path:
    """A repository with the classifiers `tiny` and `other`, and things that are no bundles."""
    for source in (bundle, second_bundle):
        shutil.copytree(source, tmp_path / "models" / source.name)
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("no bundle")
    return tmp_path / "models"


@pytest.fixture
def client(folder: Path, bundle: Path) -> Any:
    settings = Settings.model_validate({"device": "cpu", "threads": 1, "admin_key": KEY, "repository": folder})
    application = create_app(settings, open_on_cpu(bundle))
    with TestClient(application, raise_server_exceptions=False) as found:
        yield found
    application.state.api.pool.shutdown()


def states(client: TestClient) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in client.post("/v2/repository/index", headers=ADMIN).json()}


def test_a_model_is_loaded_asked_and_let_go(client: TestClient) -> None:
    assert states(client) == {"other": "UNAVAILABLE", "tiny": "READY"}
    assert client.post("/v1/classify?model=other", content=jpeg()).status_code == 404
    assert client.post("/v2/repository/models/other/load", headers=ADMIN).status_code == 200
    assert states(client) == {"other": "READY", "tiny": "READY"}
    assert {entry["label"] for entry in client.post("/v1/classify?model=other", content=jpeg()).json()} == {"x", "y"}
    assert client.post("/v2/repository/models/other/unload", headers=ADMIN).status_code == 200
    assert states(client)["other"] == "UNAVAILABLE"
    assert client.post("/v1/classify?model=other", content=jpeg()).status_code == 404


def test_a_model_is_replaced_by_what_its_folder_holds_now(client: TestClient, folder: Path, tmp_path: Path) -> None:
    client.post("/v2/repository/models/other/load", headers=ADMIN)
    shutil.rmtree(folder / "other")
    make_bundle(folder / "other", name="other", classes=("new", "newer"))
    assert {entry["label"] for entry in client.post("/v1/classify?model=other", content=jpeg()).json()} == {"x", "y"}
    assert client.post("/v2/repository/models/other/load", headers=ADMIN).status_code == 200
    answer = client.post("/v1/classify?model=other", content=jpeg()).json()
    assert {entry["label"] for entry in answer} == {"new", "newer"}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", "other"]


def test_a_broken_bundle_leaves_the_model_where_it_is(client: TestClient, folder: Path) -> None:
    client.post("/v2/repository/models/other/load", headers=ADMIN)
    (folder / "other" / "model.onnx").write_bytes(b"broken")
    answer = client.post("/v2/repository/models/other/load", headers=ADMIN)
    assert answer.status_code == 422 and "model.onnx" in answer.json()["error"]
    assert client.post("/v1/classify?model=other", content=jpeg()).status_code == 200


@pytest.mark.parametrize("name", ["empty", "none", "..", "notes.txt", "%2e%2e%2fmodels"])
def test_what_is_no_bundle_of_the_repository_is_not_loaded(client: TestClient, name: str) -> None:
    assert client.post(f"/v2/repository/models/{name}/load", headers=ADMIN).status_code == 404
    assert client.post(f"/v2/repository/models/{name}/unload", headers=ADMIN).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),
        (b'{"parameters": {"unload_dependents": true}}', 200),
        (b'{"parameters": {"config": "{}"}}', 422),
        (b'{"parameters": {"file:1/model.onnx": "AAAA", "config": "{}"}}', 422),
        (b"[1]", 400),
        (b'{"parameters": 5}', 400),
        (b"no JSON", 400),
    ],
)
def test_a_model_is_its_folder_and_nothing_that_a_request_brings(client: TestClient, body: bytes, status: int) -> None:
    assert client.post("/v2/repository/models/other/load", headers=ADMIN, content=body).status_code == status


def test_a_server_whose_last_model_has_gone_says_so_and_comes_back(client: TestClient) -> None:
    client.post("/v2/repository/models/tiny/unload", headers=ADMIN)
    answer = client.get("/readyz")
    assert answer.status_code == 503 and "no model is loaded" in answer.json()["error"]["message"]
    assert client.post("/v1/classify", content=jpeg()).status_code == 404
    client.post("/v2/repository/models/tiny/load", headers=ADMIN)
    assert client.get("/readyz").status_code == 200


def test_the_end_of_the_server_does_not_wait_for_a_model_that_is_being_loaded() -> None:
    begun, end = threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        wait_for(end)

    async def end_early() -> None:
        task = asyncio.ensure_future(in_thread(load))
        await asyncio.sleep(0)
        wait_for(begun)
        task.cancel()

    try:
        asyncio.run(end_early())  # would wait for the threads of the loop's own
        assert not end.is_set()
    finally:
        end.set()


def test_only_the_admin_key_opens_the_repository(client: TestClient, bundle: Path) -> None:
    for path in ("index", "models/tiny/load", "models/tiny/unload"):
        assert client.post(f"/v2/repository/{path}").status_code == 401
        assert client.post(f"/v2/repository/{path}", headers={"X-API-Key": "wrong"}).status_code == 401
    assert client.post("/v1/classify", content=jpeg()).status_code == 200


def test_without_an_admin_key_nobody_may(predictors: dict[str, Predictor]) -> None:
    client = TestClient(create_app(Settings(device="cpu", threads=1), predictors))
    answer = client.post("/v2/repository/models/tiny/unload", headers=ADMIN)
    assert answer.status_code == 403 and "CONVMAE_ADMIN_KEY" in answer.json()["error"]


class Closable:
    """Stands for a model, as far as `Models` looks at it."""

    def __init__(self, name: str) -> None:
        self.manifest = type("Manifest", (), {"name": name})
        self.backend = None


def test_a_model_is_held_until_its_last_request_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr("serving.api.models.close_predictors", lambda models, seconds: closed.extend(models.values()))
    old: Any = Closable("a")
    new: Any = Closable("a")
    models = Models({"a": old})
    begun, end = threading.Event(), threading.Event()

    def request() -> None:
        with models.use(lambda found: find_any(found, "a")) as used:
            assert used is old
            begun.set()
            wait_for(end)

    thread = threading.Thread(target=request)
    thread.start()
    wait_for(begun)
    models.put({"a": new})
    assert models["a"] is new and closed == []
    with models.use(lambda found: find_any(found, None)) as used:
        assert used is new
    end.set()
    thread.join()
    assert closed == [old]
    models.remove("a")
    assert closed == [old, new] and len(models) == 0


def test_a_model_is_waited_for_until_its_last_request_has_let_go_of_it() -> None:
    held: list[Any] = [Closable("a")]
    models = Models({"a": held[0]})
    models.remove("a")
    assert not models.wait_until_freed(0.0)
    held.clear()
    assert models.wait_until_freed(PATIENCE_SECONDS)


def test_readers_see_all_of_before_or_all_of_after(predictors: dict[str, Predictor]) -> None:
    models = Models(predictors)
    names = iter(models.items())
    next(names)
    models.remove("other")
    assert [name for name, _ in names] == ["other"] and list(models) == ["tiny"]
