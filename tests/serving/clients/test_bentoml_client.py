"""BentoML's own clients, unchanged, against the running server."""

import asyncio
from pathlib import Path

import bentoml
import numpy as np
import pytest
from bentoml.exceptions import BentoMLException, InvalidArgument
from PIL import Image

from tests.serving.clients.bentoml_client import connect
from tests.serving.running_server import RunningServer
from tests.serving.sample_images import jpeg
from tests.video_files import make_video

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's own, where it is imported


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    return path


def test_a_photo_is_classified_detected_and_segmented(three_tasks: RunningServer, photo: Path) -> None:
    with connect(three_tasks.url) as client:
        classes = client.classify(image=photo, top_k=2, function_to_apply="sigmoid", model=None)
        assert len(classes) == 2 and set(classes[0]) == {"label", "score"}
        with Image.open(photo) as opened:
            assert client.classify(image=opened, top_k=2, function_to_apply="sigmoid") == classes
        objects = client.detect(image=photo, threshold=0.1, masks="rle")
        assert objects and set(objects[0]) == {"label", "score", "box", "mask"}
        assert {segment["label"] for segment in client.segment(image=photo)} <= {"sky", "road", "tree", "car"}
        several = client.classify(image=[photo, photo], indices=True)
        assert len(several) == 2 and several[0] == several[1] and set(several[0][0]) == {"label", "score", "index"}


def test_features_are_arrays(three_tasks: RunningServer, photo: Path) -> None:
    with connect(three_tasks.url) as client:
        found = client.features(image=photo, levels=["pooled", "e4"], normalize=True)["features"]
    assert found["pooled"].dtype == np.float32 and found["e4"].ndim == 4
    assert np.linalg.norm(found["pooled"]) == pytest.approx(1, rel=1e-5)


def test_a_video_is_classified(video_server: RunningServer, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(make_video())
    with connect(video_server.url) as client:
        assert len(client.classify_video(video=clip, top_k=1)) == 1
        assert client.features(video=clip, model="motion")["model"] == "motion"


def test_what_is_wrong_is_said_and_no_url_is_fetched(server: RunningServer, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no photo")
    with connect(server.url) as client:
        with pytest.raises(InvalidArgument, match="not_an_image"):
            client.classify(image=tmp_path / "a.txt")
        with pytest.raises(InvalidArgument, match="file_expected"):
            client.classify(image=f"{server.url}/page/favicon.svg")
        with pytest.raises(BentoMLException, match="top_k"):
            client.classify(image=photo, top_k=0)


def test_the_asynchronous_client_works_too(server: RunningServer, photo: Path) -> None:
    async def ask() -> list[dict[str, object]]:
        async with bentoml.AsyncHTTPClient(server.url) as client:
            found = [await client.classify(image=photo, top_k=1) for _ in range(3)]  # at once they share their files
            client._temp_dir.cleanup()
        assert found[0] == found[1] == found[2]
        return list(found[0])

    assert len(asyncio.run(ask())) == 1
