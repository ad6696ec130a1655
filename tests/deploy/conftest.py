"""The server's own fixtures."""

from tests.serving.conftest import bundle, client, make_client, models, predictors, second_bundle

__all__ = ["bundle", "client", "make_client", "models", "predictors", "second_bundle"]
