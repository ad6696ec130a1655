"""Triton's client loads models anew while others ask them."""

import shutil
import threading
from pathlib import Path

import pytest
import tritonclient.http as triton

from tests.serving.running_server import RunningServer, read_response, run_server
from tests.serving.running_server import post as post_bytes
from tests.serving.sample_images import jpeg

KEY = "0123456789abcdef-admin"


@pytest.mark.slow
def test_no_request_fails_while_models_are_swapped(bundle: Path, second_bundle: Path, tmp_path: Path) -> None:
    for source in (bundle, second_bundle):
        shutil.copytree(source, tmp_path / "models" / source.name)
    settings = {
        "CONVMAE_BUNDLE": f"tiny={bundle}",
        "CONVMAE_REPOSITORY": str(tmp_path / "models"),
        "CONVMAE_ADMIN_KEY": KEY,
    }
    with run_server(tmp_path, settings) as server:
        over, statuses = threading.Event(), list[int]()
        askers = [threading.Thread(target=ask_until, args=(server, over, statuses)) for _ in range(3)]
        for asker in askers:
            asker.start()
        headers = {"X-API-Key": KEY}
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            for _ in range(3):
                client.load_model("tiny", headers=headers)
                client.load_model("other", headers=headers)
                assert client.is_model_ready("other")
                client.unload_model("other", headers=headers)
                assert not client.is_model_ready("other")
            index = client.get_model_repository_index(headers=headers)
            assert {entry["name"]: entry["state"] for entry in index} == {"other": "UNAVAILABLE", "tiny": "READY"}
        over.set()
        for asker in askers:
            asker.join()
        assert set(statuses) == {200} and len(statuses) > 3


def ask_until(server: RunningServer, over: threading.Event, statuses: list[int]) -> None:
    with server.connect() as connection:
        while not over.is_set():
            connection.sendall(post_bytes("/v1/classify?model=tiny", jpeg()))
            statuses.append(read_response(connection).status)
