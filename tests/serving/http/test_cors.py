"""Web pages of other origins: none may read or send anything unless a setting allows them."""

import pytest

from tests.serving.conftest import ClientFactory
from tests.serving.sample_images import jpeg

APP = "https://app.example.org"
KEY = "correct horse battery staple"
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def test_by_default_a_browser_is_told_nothing(make_client: ClientFactory) -> None:
    client = make_client()
    asked = client.options("/v1/classify", headers={"Origin": APP, **ASKING})
    sent = client.post("/v1/classify", content=jpeg(), headers={"Origin": APP})
    for answer in (asked, sent):
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert asked.status_code == 405


def test_an_allowed_page_may_send_a_photo_with_a_key_and_read_all_of_the_answer(make_client: ClientFactory) -> None:
    client = make_client(cors_origins=f"{APP},http://localhost:5173", api_key=KEY)
    asked = client.options("/v1/classify", headers={"Origin": APP, **ASKING})  # browsers ask without a key
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == APP
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
    sent = client.post("/v1/classify", content=jpeg(), headers={"Origin": APP, "Authorization": f"Bearer {KEY}"})
    assert (sent.status_code, sent.headers["access-control-allow-origin"]) == (200, APP)
    assert sent.headers["vary"] == "Origin"
    exposed = sent.headers["access-control-expose-headers"].split(", ")
    assert {"server-timing", "x-request-id", "x-model"} <= set(exposed)
    features = client.post(
        "/v1/features",
        content=jpeg(),
        headers={"Origin": APP, "X-API-Key": KEY, "Accept": "application/octet-stream"},
    )
    assert {"x-features", "feature-fingerprint"} <= set(features.headers["access-control-expose-headers"].split(", "))


def test_an_allowed_page_may_read_errors_too(make_client: ClientFactory) -> None:
    client = make_client(cors_origins=APP, api_key=KEY)
    for path, content, headers, status in (
        ("/v1/classify", jpeg(), {}, 401),
        ("/v1/classify", b"text", {"X-API-Key": KEY}, 400),
        ("/nothing", b"", {"X-API-Key": KEY}, 404),
    ):
        answer = client.post(path, content=content, headers={"Origin": APP, **headers})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, APP)


@pytest.mark.parametrize("origin", ["https://evil.example", f"{APP}.evil.example", "http://app.example.org", "null"])
def test_other_pages_get_an_error_in_the_usual_shape_and_may_read_nothing(
    make_client: ClientFactory, origin: str
) -> None:
    client = make_client(cors_origins=APP)
    asked = client.options("/v1/classify", headers={"Origin": origin, **ASKING})
    assert (asked.status_code, asked.json()["error"]["code"]) == (400, "cross_origin")
    assert "CONVMAE_CORS_ORIGINS" in asked.json()["error"]["message"]
    sent = client.post("/v1/classify", content=jpeg(), headers={"Origin": origin})
    for answer in (asked, sent):
        assert "access-control-allow-origin" not in answer.headers


def test_a_question_of_a_browser_is_a_request_like_any_other(make_client: ClientFactory) -> None:
    client = make_client(cors_origins=APP)
    for origin, status in ((APP, 200), ("https://evil.example", 400)):
        headers = {"Origin": origin, "X-Request-Id": f"id{status}", **ASKING}
        asked = client.options("/v1/classify", headers=headers)
        assert (asked.status_code, asked.headers["x-request-id"]) == (status, f"id{status}")
        counted = f'convmae_requests_total{{method="OPTIONS",route="unmatched",status="{status}"}} 1.0'
        assert counted in client.get("/metrics").text
    assert asked.json()["error"]["request_id"] == "id400"
    asked = client.options("/v1/classify", headers={"Origin": APP, "Access-Control-Request-Method": "DELETE"})
    assert (asked.status_code, asked.json()["error"]["code"]) == (400, "cross_origin")
    assert "method" in asked.json()["error"]["message"]


def test_answers_differ_by_origin_for_caches_too(make_client: ClientFactory) -> None:
    assert make_client(cors_origins=APP).get("/v1/models").headers["vary"] == "Origin"


def test_an_asterisk_allows_every_page(make_client: ClientFactory) -> None:
    client = make_client(cors_origins="*")
    answer = client.post("/v1/classify", content=jpeg(), headers={"Origin": "https://any.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


def test_a_program_sees_no_difference(make_client: ClientFactory) -> None:
    answer = make_client(cors_origins=APP).post("/v1/classify", content=jpeg())
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_on_a_local_server_an_allowed_page_may_send_work_and_another_name_is_still_refused(
    make_client: ClientFactory,
) -> None:
    local = make_client(cors_origins=APP, allowed_hosts="localhost")  # the rules of a local server
    page = {"Host": "localhost", "Origin": APP, "Sec-Fetch-Site": "cross-site"}
    assert local.post("/v1/classify", content=jpeg(), headers=page).status_code == 200
    assert (
        local.post("/v1/classify", content=jpeg(), headers=page | {"Origin": "https://evil.example"}).status_code == 403
    )
    assert local.post("/v1/classify", content=jpeg(), headers=page | {"Host": "evil.example"}).status_code == 421


def test_a_page_on_a_public_address_may_ask_a_server_on_a_private_one(make_client: ClientFactory) -> None:
    asking = {"Origin": APP, "Access-Control-Request-Private-Network": "true", **ASKING}
    answer = make_client(cors_origins=APP).options("/v1/classify", headers=asking)
    assert answer.headers["access-control-allow-private-network"] == "true"
