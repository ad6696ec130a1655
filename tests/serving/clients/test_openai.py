"""OpenAI's own client, unchanged, against the running server: photos where it has text."""

import base64

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.serving.running_server import RunningServer
from tests.serving.sample_images import jpeg

URI = f"data:image/jpeg;base64,{base64.b64encode(jpeg()).decode()}"


def test_photos_are_embedded(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        both = client.embeddings.create(model="tiny", input=[URI, URI])
        floats = client.embeddings.create(model="tiny", input=URI, encoding_format="float")
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
    assert [entry.index for entry in both.data] == [0, 1] and both.model == "tiny"
    np.testing.assert_allclose(both.data[0].embedding, floats.data[0].embedding, rtol=1e-6)


def test_what_is_wrong_is_said(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(BadRequestError, match="base64"):
            client.embeddings.create(model="tiny", input="a sentence!")
        with pytest.raises(NotFoundError, match="tiny"):
            client.embeddings.create(model="none", input=URI)
