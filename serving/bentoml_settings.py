"""BentoML's own settings: what each means for this server, or why it cannot be had.

BentoML applies them in layers that requests do not pass here. So each one that a user has set is followed, left to
BentoML where it is about the socket, or refused with a sentence: none is ignored. What is said to BentoML wins over
`CONVMAE_*` variables, as its command line is the nearer one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import yaml
from click.core import ParameterSource

from convmae_deploy.errors import ConvMAEError
from serving.api.bentoml_schema import SERVICE_NAME
from serving.settings import Settings, is_service_address, load_settings

VARIABLES: Final = {  # of `bentoml serve`; `python -m serving` is told by them too
    "BENTOML_HOST": "http.host",
    "BENTOML_PORT": "http.port",
    "BENTOML_API_WORKERS": "workers",
    "BENTOML_TIMEOUT": "traffic.timeout",
}
CONFIGURATION: Final = ("BENTOML_CONFIG", "BENTOML_CONFIG_OVERRIDES", "BENTOML_CONFIG_OPTIONS")
OPTIONS: Final = {  # of the command `bentoml serve`; BentoML does by itself what the others say
    "api_workers": "workers",
    "timeout": "traffic.timeout",
    "timeout_keep_alive": "--timeout-keep-alive",
    "timeout_graceful_shutdown": "--timeout-graceful-shutdown",
}
FOLLOWED: Final = {  # by these settings of ours
    "http.host": ("host",),
    "http.port": ("port",),
    "threads": ("threads",),
    "traffic.timeout": ("request_timeout_seconds", "video_request_timeout_seconds"),
    "--timeout-keep-alive": ("keep_alive_seconds",),
    "--timeout-graceful-shutdown": ("shutdown_seconds",),
}
ACCESS_LOG: Final = "logging.access.enabled"
CORS: Final = "http.cors."
CORS_OPTION: Final = "access_control_"  # before the names of the options that Starlette's middleware has
LEFT_TO_BENTOML: Final = ("ssl.",)  # done by `bentoml serve` alone
HOLD_ANYWAY: Final[Mapping[str, tuple[Any, ...]]] = {  # values that say what is so
    "workers": (1,),
    "replicate_process": (False,),
    "metrics.enabled": (True, False),  # BentoML's own are always off, and ours at /metrics always on
    "http.response.trace_id": (False,),
    "monitoring.enabled": (False,),
    "runner_probe.enabled": (False,),
    "traffic.max_concurrency": (None,),
}
HINTS: Final = ("resources", "traffic.concurrency", "traffic.external_queue", "backlog")  # for schedulers and sockets
ADVICE: Final = {  # instead of a setting that is refused
    "workers": "one process uses every core; set CONVMAE_THREADS",
    "replicate_process": "one process uses every core; set CONVMAE_THREADS",
    "traffic.max_concurrency": "set CONVMAE_MAX_QUEUE_SECONDS, which bounds how long a request may wait",
    "metrics": "the metrics at /metrics have names and buckets of their own",
    "http.response": "every answer carries X-Request-Id",
    "http.proxy_port": "set CONVMAE_PORT",
    "ssl": "start the server with `bentoml serve`, or put a proxy with TLS before it",
    "grpc": "this server speaks HTTP alone",
    "tracing": "set OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT",
    "logging": "the lines of CONVMAE_ACCESS_LOG hold all that is known of a request",
    "monitoring": "read /metrics",
}
SECTIONS: Final = frozenset(
    "resources workers threads backlog max_runner_connections replicate_process extra_ports runner_connection traffic "
    "metrics runner_probe logging ssl http grpc monitoring tracing batching endpoints".split()
)


class Loaded(NamedTuple):
    """The settings, and what BentoML says of pages of other origins: None where it says nothing."""

    settings: Settings
    cors: dict[str, Any] | None


def load() -> Loaded:
    """All settings, from BentoML's files, variables and command line too.

    Raises:
        ConvMAEError: one has a value that is not allowed, or means nothing here.
    """
    options = _command_line()
    given = _given() | (options or {})
    for name, value in given.items():
        _check(name, value, in_bentoml=options is not None)
    ours = {setting: given[name] for name, settings in FOLLOWED.items() if name in given for setting in settings}
    if ACCESS_LOG in given:
        ours["access_log"] = "json" if given[ACCESS_LOG] else "none"
    return Loaded(load_settings(ours), _cors(given))


def _check(name: str, value: object, in_bentoml: bool) -> None:
    """Refuses a setting that nobody would follow."""
    followed = name in (*FOLLOWED, ACCESS_LOG) or name.startswith(CORS)
    left = in_bentoml and name.startswith(LEFT_TO_BENTOML)
    if followed or left or name.startswith(HINTS) or value in HOLD_ANYWAY.get(name, ()):
        return
    advice = next((text for start, text in ADVICE.items() if name.startswith(start)), "see serving/README.md")
    raise ConvMAEError(f"BentoML's setting {name}={value!r} has no effect on this server; take it out: {advice}")


def _cors(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the middleware takes, as BentoML would give it."""
    cors = {name.removeprefix(CORS): value for name, value in given.items() if name.startswith(CORS)}
    if not cors.pop("enabled", False):
        return None
    options = {name.removeprefix(CORS_OPTION): value for name, value in cors.items() if value is not None}
    lists = ("allow_origins", "allow_methods", "allow_headers", "expose_headers")
    return options | {name: [options[name]] for name in lists if isinstance(options.get(name), str)}


def _given() -> dict[str, Any]:
    """What the user has set in BentoML's file and variables: names with dots, without `services` before them."""
    given: dict[str, Any] = {}
    if any(os.environ.get(name) for name in CONFIGURATION):
        # Only here, as it takes a second to import; it may fail by itself over what the user has written.
        from bentoml.exceptions import BentoMLException

        try:
            from bentoml._internal.configuration.containers import BentoMLConfiguration

            file, overrides, options = (os.path.expandvars(os.environ.get(name, "")) for name in CONFIGURATION)
            BentoMLConfiguration(file or None, options or None, None, json.loads(overrides or "null"), use_version=2)
            for source in _sources(file, overrides, options):
                given |= dict(_ours(source))
        except (BentoMLException, OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            advice = f"correct {', '.join(name for name in CONFIGURATION if os.environ.get(name))}"
            raise ConvMAEError(f"BentoML's settings cannot be read ({reason}); {advice}") from None
    set_here = {name: os.environ.get(variable, "").strip() for variable, name in VARIABLES.items()}
    # Kubernetes sets BENTOML_PORT for a Service called bentoml.
    set_here = {name: value for name, value in set_here.items() if value and not is_service_address(value)}
    return given | {name: _value(value) for name, value in set_here.items()}


def _value(text: str) -> object:
    """What a variable says: a number where it is one, else its text, which is judged where it is used."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _sources(file: str, overrides: str, options: str) -> Iterator[Mapping[str, Any]]:
    """What each source says, in the order in which BentoML lets the later ones win: names with dots."""
    from bentoml._internal.utils import split_with_quotes

    if file:
        yield _flat(yaml.safe_load(Path(file).read_text("utf-8")))
    if overrides:
        yield _flat(json.loads(overrides))
    if options:
        entries = split_with_quotes(options, sep=r"\s+", quote='"', use_regex=True)
        pairs = [split_with_quotes(entry, sep="=", quote='"') for entry in entries if entry.strip()]
        yield {name: yaml.safe_load(value) for name, value in pairs}


def _flat(content: object, before: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {before.removesuffix("."): content}
    return {name: value for key, inner in content.items() for name, value in _flat(inner, f"{before}{key}.").items()}


def _ours(source: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a source that are for this service: those for all first, then those for it alone."""
    own: list[tuple[str, Any]] = []
    for name, value in source.items():
        first, _, rest = name.partition(".")
        section, _, inner = rest.partition(".")
        if first == "version" or name == "":
            continue
        if first != "services" or not (section in SECTIONS or inner.partition(".")[0] in SECTIONS):
            raise ValueError(f"there is no setting {name}")
        if section in SECTIONS:
            yield rest, value
        elif section == SERVICE_NAME:  # and else another service's
            own.append((inner, value))
    yield from own


def _command_line() -> dict[str, Any] | None:
    """What the command `bentoml serve`, or the process that it starts, was called with; None without such a command."""
    context = click.get_current_context(silent=True)
    if context is None:
        return None
    said = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {
        name: context.params[option]
        for option, name in OPTIONS.items()
        if context.params.get(option) is not None and context.get_parameter_source(option) in said
    }
