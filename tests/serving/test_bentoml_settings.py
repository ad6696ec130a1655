"""BentoML's own settings: each is followed or refused, none is ignored."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from convmae_deploy.errors import ConvMAEError
from serving.bentoml_settings import CONFIGURATION, OPTIONS, VARIABLES, Loaded, load
from tests.serving.conftest import forget_settings

FROM_BENTOML_S_MANUAL = {  # its example of every setting for pages of other origins
    "enabled": True,
    "access_control_allow_origins": ["http://myorg.com:8080", "https://myorg.com:8080"],
    "access_control_allow_methods": ["GET", "OPTIONS", "POST", "HEAD", "PUT"],
    "access_control_allow_credentials": True,
    "access_control_allow_headers": ["*"],
    "access_control_allow_origin_regex": r"https://.*\.my_org\.com",
    "access_control_max_age": 1200,
    "access_control_expose_headers": ["Content-Length"],
}


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)
    for name in (*CONFIGURATION, *VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def load_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads all settings with some of BentoML's, as nested dictionaries below `services`."""

    def load_settings(services: dict[str, Any]) -> Loaded:
        monkeypatch.setenv("BENTOML_CONFIG_OVERRIDES", json.dumps({"services": services}))
        return load()

    return load_settings


def test_without_any_nothing_changes() -> None:
    assert load().settings.request_timeout_seconds == 10.0
    assert load().cors is None


@pytest.mark.parametrize("start", [[], ["convmae"]])
def test_what_they_say_is_followed_for_all_services_and_for_this_one(load_with: Any, start: list[str]) -> None:
    content: dict[str, Any] = {
        "traffic": {"timeout": 33.0},
        "threads": 3,
        "http": {"host": "127.0.0.2", "port": 4000},
        "backlog": 300,
        "workers": 1,
        "resources": {"cpu": "2", "memory": "1Gi"},
    }
    for name in start:
        content = {name: content}
    settings = load_with(content).settings
    assert (settings.request_timeout_seconds, settings.video_request_timeout_seconds) == (33.0, 33.0)
    assert (settings.threads, settings.host, settings.port) == (3, "127.0.0.2", 4000)


def test_one_for_this_service_wins_over_one_for_all_and_another_services_means_nothing(load_with: Any) -> None:
    content = {"traffic": {"timeout": 1.0}, "convmae": {"traffic": {"timeout": 2.0}}, "other": {"workers": 4}}
    assert load_with(content).settings.request_timeout_seconds == 2.0


@pytest.mark.parametrize(("enabled", "format"), [(True, "json"), (False, "none")])
def test_its_access_log_is_ours(load_with: Any, enabled: bool, format: str) -> None:
    assert load_with({"logging": {"access": {"enabled": enabled}}}).settings.access_log == format


def test_what_is_said_to_bentoml_wins_over_our_variables(load_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_REQUEST_TIMEOUT_SECONDS", "5")
    assert load_with({"traffic": {"timeout": 7.0}}).settings.request_timeout_seconds == 7.0


def test_the_file_is_read_and_the_variable_wins(
    load_with: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bentoml.yaml").write_text("services: {traffic: {timeout: 3.0}, threads: 2}\n")
    monkeypatch.setenv("BENTOML_CONFIG", str(tmp_path / "bentoml.yaml"))
    settings = load_with({"traffic": {"timeout": 4.0}}).settings
    assert (settings.request_timeout_seconds, settings.threads) == (4.0, 2)


@pytest.mark.filterwarnings("ignore:Overriding BentoML config:DeprecationWarning")
def test_the_variable_with_options_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    options = 'services.convmae.traffic.timeout=6 services.threads=2 "services"."http"."port"=5000'
    monkeypatch.setenv("BENTOML_CONFIG_OPTIONS", options.replace('"', ""))
    settings = load().settings
    assert (settings.request_timeout_seconds, settings.threads, settings.port) == (6.0, 2, 5000)


def test_all_that_bentoml_knows_of_other_origins_is_handed_on(load_with: Any) -> None:
    assert load_with({"http": {"cors": FROM_BENTOML_S_MANUAL}}).cors == {
        name.removeprefix("access_control_"): value
        for name, value in FROM_BENTOML_S_MANUAL.items()
        if name != "enabled"
    }
    one = {"enabled": True, "access_control_allow_origins": "*"}
    assert load_with({"http": {"cors": one}}).cors == {"allow_origins": ["*"]}
    assert load_with({"http": {"cors": one | {"enabled": False}}}).cors is None


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ({"workers": 4}, ("workers=4", "CONVMAE_THREADS")),
        ({"traffic": {"max_concurrency": 5}}, ("traffic.max_concurrency=5", "CONVMAE_MAX_QUEUE_SECONDS")),
        ({"metrics": {"namespace": "mine"}}, ("metrics.namespace='mine'", "/metrics")),
        ({"http": {"response": {"trace_id": True}}}, ("http.response.trace_id=True", "X-Request-Id")),
        ({"ssl": {"enabled": True}}, ("ssl.enabled=True", "`bentoml serve`")),
        ({"grpc": {"port": 4000}}, ("grpc.port=4000", "HTTP alone")),
        ({"tracing": {"sample_rate": 0.5}}, ("tracing.sample_rate=0.5", "OTEL_")),
        ({"runner_probe": {"period": 5}}, ("runner_probe.period=5", "serving/README.md")),
    ],
)
def test_what_cannot_be_had_is_one_sentence_that_says_what_to_do(
    load_with: Any, services: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConvMAEError) as caught:
        load_with(services)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["{", '{"services": {"backlog": 3}}', '{"services": {"trafic": {"timeout": 3}}}', '{"api_server": {"port": 1}}'],
)
def test_settings_that_bentoml_would_not_take_or_nobody_knows_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("BENTOML_CONFIG_OVERRIDES", text)
    with pytest.raises(ConvMAEError, match="BENTOML_CONFIG_OVERRIDES") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_CONFIG", "/none.yaml")
    with pytest.raises(ConvMAEError, match="/none.yaml.*correct BENTOML_CONFIG"):
        load()


def test_the_variables_of_bentoml_serve_hold_for_our_own_command_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "127.0.0.3", "PORT": "4001", "TIMEOUT": "20", "API_WORKERS": "1"}.items():
        monkeypatch.setenv(f"BENTOML_{name}", value)
    settings = load().settings
    assert (settings.host, settings.port, settings.request_timeout_seconds) == ("127.0.0.3", 4001, 20.0)
    monkeypatch.setenv("BENTOML_API_WORKERS", "2")
    with pytest.raises(ConvMAEError, match="workers=2"):
        load()


@pytest.mark.parametrize("text", ["*", "@name", "[::1", "'"])
def test_a_variable_is_text_where_it_is_nothing_else(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BENTOML_HOST", text)
    assert load().settings.host == text
    monkeypatch.setenv("BENTOML_TIMEOUT", text)
    with pytest.raises(ConvMAEError, match="REQUEST_TIMEOUT_SECONDS"):
        load()


def test_an_empty_variable_and_the_address_of_a_service_called_bentoml_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONVMAE_PORT", "4002")
    monkeypatch.setenv("BENTOML_PORT", "tcp://10.96.12.7:3000")
    monkeypatch.setenv("BENTOML_TIMEOUT", "")
    assert load().settings.port == 4002


def called_with(*arguments: str) -> Loaded:
    """What is loaded inside a command that has the options of `bentoml serve`."""
    found: list[Loaded] = []

    @click.command()
    @click.option("--api-workers", type=int)
    @click.option("--timeout", type=int)
    @click.option("--timeout-keep-alive", type=int, default=5)  # as in BentoML's worker, where nobody has said that
    @click.option("--timeout-graceful-shutdown", type=int)
    @click.option("--ssl-certfile")
    def serve(**options: object) -> None:
        found.append(load())

    result = CliRunner().invoke(serve, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return found[0]


def test_options_of_the_command_line_are_followed_and_defaults_that_nobody_gave_are_not() -> None:
    settings = called_with("--timeout", "9", "--timeout-keep-alive", "120", "--timeout-graceful-shutdown", "3").settings
    assert (settings.request_timeout_seconds, settings.keep_alive_seconds, settings.shutdown_seconds) == (9, 120, 3)
    assert called_with().settings.keep_alive_seconds == 75.0
    with pytest.raises(ConvMAEError, match="workers=3"):
        called_with("--api-workers", "3")


def test_bentoml_itself_sees_to_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_CONFIG_OVERRIDES", '{"services": {"ssl": {"enabled": true, "certfile": "a.pem"}}}')
    assert called_with().cors is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the command imports
def test_the_options_are_those_of_the_command_that_is_installed() -> None:
    from bentoml_cli.serve import build_serve_command

    names = {str(parameter.name) for parameter in build_serve_command().commands["serve"].params}
    assert {name for name in names if "timeout" in name or "worker" in name} == set(OPTIONS)
