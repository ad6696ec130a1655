"""The model's failures: whose they are, and what they mean for the server."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.classification import Classifier
from serving.api.parameters import check_levels
from serving.errors import ApiError, ClientGone
from serving.work.pool import Ticket
from serving.work.runs import Health, counted, run_for
from tests.serving.conftest import ClientFactory
from tests.serving.sample_images import jpeg

BATCH = np.zeros((1, 3, 64, 64), dtype=np.float32)


class BrokenBackend:
    """A backend that fails."""

    name = "broken"
    providers = ("BrokenExecutionProvider",)

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        raise RuntimeError("broken")


def broken(predictor: Classifier) -> Classifier:
    bundle = Bundle.__new__(Bundle)
    object.__setattr__(bundle, "manifest", predictor.manifest)
    return Classifier(bundle, BrokenBackend())


def run(predictor: Classifier, outputs: Sequence[str], health: Health) -> None:
    with counted(predictor, health):
        run_for(predictor, Ticket())(BATCH, outputs)


def test_only_failures_of_the_model_itself_count_against_it(predictors: dict[str, Classifier]) -> None:
    health = Health()
    for _ in range(3):
        with pytest.raises(ApiError) as refused:
            run(predictors["tiny"], ["no such output"], health)
        assert refused.value.code == "inference_failed"
        notes = refused.value.__cause__.__notes__  # type: ignore[union-attr]
        assert notes == ["a batch of shape (1, 3, 64, 64)", "model tiny"]
        assert isinstance(refused.value.__cause__, ConvMAEError)
    assert health.ready
    for _ in range(3):
        assert health.ready
        with pytest.raises(ApiError):
            run(broken(predictors["tiny"]), ["logits"], health)
    assert not health.ready


def test_one_model_that_fails_makes_the_server_not_ready_although_others_run(
    make_client: ClientFactory, predictors: dict[str, Classifier]
) -> None:
    client = make_client({"tiny": predictors["tiny"], "other": broken(predictors["other"])})
    for _ in range(3):
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/classify?model=other", content=jpeg()).status_code == 500
        assert client.post("/v1/classify?model=tiny", content=jpeg()).status_code == 200
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "other" in answer.json()["error"]["message"]


def test_embeddings_of_a_model_without_a_pooled_vector_are_refused_as_a_level_that_it_lacks(
    make_client: ClientFactory, predictors: dict[str, Classifier]
) -> None:
    predictor = broken(predictors["tiny"])
    outputs = {name: spec for name, spec in predictor.manifest.outputs.items() if name != "pooled"}
    predictor.manifest = predictor.manifest.model_copy(update={"outputs": outputs})
    with pytest.raises(ApiError):
        check_levels(predictor, ["pooled"])
    answer = make_client({"tiny": predictor}).post("/v1/embeddings", json={"input": "aGk="})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_level")


def test_a_client_that_goes_while_its_photo_waits_is_no_failure_of_the_model(predictors: dict[str, Classifier]) -> None:
    class Leaving(BrokenBackend):
        def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
            raise ClientGone

    predictor, health = broken(predictors["tiny"]), Health()
    predictor.backend = Leaving()
    with pytest.raises(ClientGone):
        run(predictor, ["logits"], health)
    assert health.failures_in_a_row == 0
