"""The server's settings, read from environment variables that start with `CONVMAE_`.

`python -m serving.settings` prints them as the table of serving/README.md.
"""

import difflib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from convmae_deploy.backends.base import ComputePrecision, Device, PerformanceHint
from convmae_deploy.backends.runtimes import RUNTIMES, RuntimeName
from convmae_deploy.bundle.manifest import MANIFEST_NAME, NAME_PATTERN
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import available_cores, available_memory_bytes
from convmae_deploy.printing import printable
from serving.setting_types import FrameSources, HostNames, Networks, Origins, RootPath

logger = logging.getLogger("convmae_serving")

PREFIX = "CONVMAE_"
BUNDLE_SEPARATOR = ":"
NAMED_BUNDLE = re.compile(rf"(?P<name>{NAME_PATTERN.strip('^$')})=(?P<path>.+)")
DEFAULT_PORT = 3000
KEYS = ("api_key", "admin_key")
PROTECTING = (*KEYS, "allowed_hosts")  # what the settings begin with that an empty variable does not unset
KEY_CHARACTERS = 16  # fewer can be guessed
MOST_SECRET_BYTES = 64 * 1024  # read of a file that should hold a key
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+")  # what Kubernetes puts into NAME_PORT for a Service NAME
MOST_PIXELS = 2**31  # of no photo that memory has room for
UNKNOWN_DEFAULT = "default_factory_not_called"  # of a setting whose default needs another, which has a bad value
LIKENESS = 0.9  # of a variable that is no setting to the one that was meant
DEFAULTS_IN_WORDS = {
    "bundle": "the models that ship",
    "threads": "all cores",
    "max_request_pixels": "twice `CONVMAE_MAX_IMAGE_PIXELS`",
    "max_decoding_bytes": "half of memory",
}
Seconds = Annotated[float, Field(gt=0, le=86_400)]  # at most a day
BUNDLES = Path(__file__).parent / "bundles"
SHIPPED_BUNDLE = BUNDLES / "imagenette-nano"


def default_bundles() -> tuple[Path, ...]:
    """The bundles beside this file, by name: those that ship, or that a bento was built with."""
    found = sorted(path.parent for path in BUNDLES.glob(f"*/{MANIFEST_NAME}"))
    return tuple(found) or (SHIPPED_BUNDLE,)


def with_option(option: str, meaning: str) -> str:
    """What an option means that one runtime alone takes."""
    return f"With {', '.join(runtime.title for runtime in RUNTIMES.values() if option in runtime.options)}: {meaning}"


def runtimes_for(device: str) -> str:
    """The runtimes that are for one kind of device alone, as a user names them."""
    return " and ".join(f"`{name}`" for name, runtime in RUNTIMES.items() if runtime.devices == (device,))


def half_of_memory() -> int:
    """Bytes: half of what this machine or container has."""
    return available_memory_bytes() // 2


class Settings(BaseSettings):
    """What the server serves, where, and how much of it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    bundle: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=default_bundles,
        description=(
            "Bundle folders, separated by `:`; the first of each task is the default of that task. `NAME=FOLDER` gives "
            "a model another name than its manifest."
        ),
    )
    repository: Path | None = Field(
        default=None,
        description=(
            "Folder of bundle folders, of which `POST /v2/repository/models/NAME/load` may load the one called `NAME`; "
            "without it, that loads models of `CONVMAE_BUNDLE` anew."
        ),
    )
    admin_key: SecretStr | None = Field(
        default=None,
        description=(
            "When set, requests with it, sent as `CONVMAE_API_KEY` is, may load and unload models under "
            "`/v2/repository`; without it nobody may."
        ),
    )
    admin_key_file: Path | None = Field(
        default=None, description="File with that key, in place of `CONVMAE_ADMIN_KEY`; read at the start."
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address or name to listen on; `0.0.0.0` for every interface, `::` for those of IPv6 too.",
    )
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    device: Device = Field(
        default="auto", description="Where the models run: `cpu`, `cuda`, or `auto` (CUDA where it starts, else CPU)."
    )
    runtime: RuntimeName | Literal["auto"] = Field(
        default="onnxruntime",
        description=(
            f"What runs the models; {runtimes_for('cpu')} is for CPUs, {runtimes_for('cuda')} are for NVIDIA GPUs; "
            "`auto` is what `export.benchmark --choose` wrote beside each bundle on this machine, else ONNX Runtime, "
            "and the log says which; "
            "the start says which pip extra is missing."
        ),
    )
    file: str | None = Field(
        default=None, description="Graph of the bundles to run, such as `model.fp16.onnx`; by default each one's first."
    )
    max_batch: int | None = Field(
        default=None,
        ge=1,
        description="On a GPU: photos run together, of one request or several; by default as many as the model takes.",
    )
    precision: ComputePrecision = Field(
        default="fp32",
        description=with_option("precision", "`bf16` is faster where the CPU has it, and less exact."),
    )
    hint: PerformanceHint = Field(
        default="throughput",
        description=with_option("hint", "`throughput` runs requests side by side, `latency` each with all threads."),
    )
    require_signature: Path | None = Field(
        default=None,
        description="File with a public key in PEM: only bundles that its owner signed (`convmae sign`) are served, "
        "with no file changed or added.",
    )
    trust_engine_code: bool = Field(
        default=False,
        description=with_option(
            "trust_engine_code",
            "run the program inside a version-compatible engine, with all rights of the server; only for engines that "
            "you built or whose maker you trust.",
        ),
    )
    threads: int = Field(
        default_factory=available_cores,
        ge=1,
        le=1024,
        description=(
            "Requests decoded and run at the same time, one core each; by default the cores of this machine or "
            "container."
        ),
    )
    api_key: SecretStr | None = Field(
        default=None,
        description=(
            "When set, requests must carry it as `Authorization: Bearer` or `X-API-Key`; "
            "`/livez`, `/readyz`, `/openapi.json` and the page stay open. "
            f"At least {KEY_CHARACTERS} characters; too many wrong ones from an address are answered 429."
        ),
    )
    allowed_hosts: HostNames | None = Field(
        default=None,
        description=(
            "Names that this server is reached by, separated by `,`; requests for other names, and what web pages of "
            "other hosts send, are refused. Without it, a server that has no key and listens on a loopback address "
            "refuses all names but `localhost`, and any other server none; `*` refuses none."
        ),
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with the key, such as a mounted secret, in place of `CONVMAE_API_KEY`; read at the start.",
    )
    cors_origins: Origins = Field(
        default=(),
        description=(
            "Origins whose web pages may send requests and read the answers, separated by `,`, such as "
            "`https://app.example.org`; `*`: every page. By default only the server's own."
        ),
    )
    frame_ancestors: FrameSources = Field(
        default=("none",),
        description="Pages that may show this server's page in a frame, such as `self,https://app.example.org`.",
    )
    root_path: RootPath = Field(
        default="",
        description=(
            "Path under which a proxy shows this server, such as `/convmae`, whether the proxy takes it off the "
            "requests or not."
        ),
    )
    trusted_proxies: Networks = Field(
        default=(),
        description=(
            "Addresses and networks of proxies, separated by `,`, whose `X-Forwarded-For` and `X-Forwarded-Prefix` are "
            "believed; `*`: of everybody. By default of nobody."
        ),
    )
    max_connections: int = Field(
        default=2000,
        ge=1,
        description=(
            "Connections held at once, fewer where the system gives fewer file descriptors; beyond it, the oldest "
            "without a request is closed."
        ),
    )
    keep_alive_seconds: Seconds = Field(
        default=75.0,
        description="Time that a connection may stay without a request; longer than a balancer's.",
    )
    max_body_bytes: int = Field(default=20_000_000, ge=1, description="Largest request body in bytes.")
    max_json_body_bytes: int = Field(
        default=28_000_000, ge=1, description="Largest JSON request body in bytes (base64 needs a third more)."
    )
    max_buffered_bytes: int = Field(
        default=512_000_000, ge=1, description="Bytes of request bodies held at once by all requests; beyond it, 503."
    )
    max_unread_bytes: int = Field(
        default=256_000_000,
        ge=1,
        description=(
            "Bytes of answers held at once that clients have not read yet; beyond it, those that read slowly are "
            "disconnected, and new requests get 503."
        ),
    )
    min_bytes_per_second: int = Field(
        default=5_000,
        ge=1,
        description=(
            "Slowest that a client may send a body, on average over `CONVMAE_BODY_TIMEOUT_SECONDS`, or read an answer, "
            "over 10 s."
        ),
    )
    max_image_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=MOST_PIXELS,
        description=(
            "Largest photo in pixels, read from its header; it must fit into `CONVMAE_MAX_DECODING_BYTES` too. To "
            "classify a JPEG or to take its features, up to four times as many are accepted and decoded at half the "
            "width and height."
        ),
    )
    max_image_side: int = Field(default=16_384, ge=1, description="Longest side of a photo in pixels.")
    max_image_aspect: float = Field(default=100.0, ge=1, description="Largest ratio of a photo's sides.")
    max_images: int = Field(default=32, ge=1, description="Photos in one request.")
    max_request_pixels: int = Field(
        default_factory=lambda given: 2 * given.get("max_image_pixels", 0),
        ge=1,
        description="Pixels of all photos of one request; by default twice the largest photo.",
    )
    max_video_body_bytes: int = Field(
        default=50_000_000, ge=1, description="Largest request body with a video in bytes; JSON as above."
    )
    max_video_seconds: Seconds = Field(default=300.0, description="Longest video, read from its header first.")
    max_video_frames: int = Field(default=18_000, ge=1, description="Frames of a video, read from its header first.")
    max_video_pixels: int = Field(
        default=4096 * 2304, ge=1, description="Largest frame of a video in pixels, read from its header first."
    )
    max_video_aspect: float = Field(default=20.0, ge=1, description="Largest ratio of the sides of a video's frames.")
    max_video_views: int = Field(
        default=15, ge=1, description="Clips of one video, `temporal_views` times `spatial_views`; all are in memory."
    )
    video_decoding_seconds: Seconds = Field(
        default=20.0,
        description="Time to decode a video; beyond it, 422, as the same video would fail again.",
    )
    max_video_decoding_bytes: int = Field(
        default=1_000_000_000,
        ge=1,
        description=(
            "Memory in bytes that decoding one video may take: the file, what its container says, frames and clips; "
            "beyond it, 413."
        ),
    )
    max_decoding_bytes: int = Field(
        default_factory=half_of_memory,
        ge=1,
        description=(
            "Memory in bytes that decoding photos and videos may take, all requests together; the next one waits, and "
            "one that needs more alone is answered 413. By default half of the memory of this machine or container."
        ),
    )
    max_json_features_bytes: int = Field(
        default=262_144, ge=1, description="Features as JSON only up to this many bytes of float32; beyond it, 406."
    )
    max_queue_seconds: Seconds = Field(
        default=2.0,
        description="Estimated wait for a free thread beyond which a request is answered 503.",
    )
    body_timeout_seconds: Seconds = Field(
        default=10.0,
        description=(
            "Time in which a request's body, or the next part of it at `CONVMAE_MIN_BYTES_PER_SECOND`, must come; "
            "then 408."
        ),
    )
    request_timeout_seconds: Seconds = Field(
        default=10.0, description="Time from the received body to the answer; then 504."
    )
    video_body_timeout_seconds: Seconds = Field(
        default=60.0, description="As `CONVMAE_BODY_TIMEOUT_SECONDS`, for a body with a video."
    )
    video_request_timeout_seconds: Seconds = Field(
        default=120.0,  # 15 views of ConvMAE-B take a minute on one core
        description="Time from the received video to the answer; then 504.",
    )
    access_log: Literal["none", "json"] = Field(
        default="none",
        description=(
            "`json` writes a line for each request to standard output: its id and trace, the client's address, method, "
            "route, path without the query, status, bytes, seconds, model and phases."
        ),
    )
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description=(
            "Time after SIGTERM for which requests are still answered while `/readyz` says 503: as long as the "
            "balancer in front needs to hear of it."
        ),
    )
    shutdown_seconds: Seconds = Field(
        default=30.0, description="Time that requests in flight get to finish after that."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Any) -> Any:
        """Empty is unset, as templates write what nobody gave; but nothing that protects is unset by mistake."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name.startswith(PROTECTING) or not _is_blank(value)}

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, values: Any) -> Any:
        """Puts the text of a key's file where the key belongs."""
        if not isinstance(values, dict):
            return values
        for key in KEYS:
            path, name = values.get(f"{key}_file"), f"{PREFIX}{key.upper()}"
            if path is None:
                continue
            if values.get(key) is not None:
                raise ValueError(f"{name} and {name}_FILE are both set; unset one")
            try:
                with Path(str(path).strip()).open("rb") as file:
                    values = values | {key: file.read(MOST_SECRET_BYTES).decode("utf-8", "replace")}
            except OSError as error:
                reason = f"expected a file with the key, got {str(path)[:200]!r} ({error.strerror})"
                raise ValueError(f"{name}_FILE: {reason}; mount it, or unset the variable") from None
        return values

    @field_validator("port", mode="before")
    @classmethod
    def _not_of_kubernetes(cls, value: object) -> object:
        """For a Service called `convmae`, Kubernetes puts its address where our port would be."""
        return DEFAULT_PORT if is_service_address(value) else value

    def bundle_names(self) -> list[tuple[str | None, Path]]:
        """Each bundle's name, None where its manifest decides, and its folder."""
        found: list[tuple[str | None, Path]] = []
        for entry in self.bundle:
            match = NAMED_BUNDLE.fullmatch(str(entry))
            found.append((None, entry) if match is None else (match["name"], Path(match["path"])))
        return found

    @field_validator("bundle", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, Path):
            return (value,)
        if not isinstance(value, str):
            return value
        return tuple(Path(part) for part in value.split(BUNDLE_SEPARATOR) if part)

    @field_validator("bundle")
    @classmethod
    def _not_empty(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if not value:
            raise ValueError("name at least one bundle folder")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _without_blanks_around(cls, value: object) -> object:
        """A variable read from a file, such as a mounted secret, often ends in a newline."""
        return value.strip() if isinstance(value, str) else value

    @field_validator(*KEYS)
    @classmethod
    def _key_protects(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return value
        key = value.get_secret_value()
        make_one = 'make one with: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
        if not key.isascii() or not key.isprintable():
            raise ValueError(f"expected printable ASCII characters, which a header can carry, got others; {make_one}")
        if len(key) < KEY_CHARACTERS:
            raise ValueError(
                f"expected at least {KEY_CHARACTERS} characters, got {len(key)}; unset it for no key, or {make_one}"
            )
        return value


def load_settings(given: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment.

    Args:
        given: settings by name that win over the environment.

    Raises:
        ConvMAEError: a variable has a value that is not allowed; the sentence names it.
    """
    try:
        return Settings(**(given or {}))
    except ValidationError as error:
        reasons = "; ".join(
            ": ".join([*(f"{PREFIX}{str(part).upper()}" for part in problem["loc"][:1]), problem["msg"]])
            for problem in error.errors(include_input=False, include_url=False)
            if problem["type"] != UNKNOWN_DEFAULT
        ).replace("Value error, ", "")
        raise ConvMAEError(
            f"a setting has a value that is not allowed ({reasons}); correct it and start again"
        ) from None


def warn_of_variables(environment: Mapping[str, str]) -> None:
    """Says in the log which variables look like settings and are none."""
    if is_service_address(environment.get(f"{PREFIX}PORT")):
        logger.warning(
            "CONVMAE_PORT is the address of a Service of Kubernetes called convmae, not a port, and is not used. "
            "Set enableServiceLinks: false in the pod, or CONVMAE_PORT to the port that you want"
        )
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name in sorted(set(environment) - set(known)):
        meant = difflib.get_close_matches(name, known, 1, LIKENESS) if name.startswith(PREFIX) else ()
        if meant:
            logger.warning("%s is no setting and changes nothing; did you mean %s?", printable(name), meant[0])


def is_service_address(value: object) -> bool:
    """Whether a variable's value is one that Kubernetes sets for a Service, whatever a user means by that name."""
    return isinstance(value, str) and SERVICE_ADDRESS.fullmatch(value.strip()) is not None


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def markdown_table() -> str:
    """The settings as a Markdown table: variable, default, meaning."""
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{PREFIX}{name.upper()}` | {_default_text(name)} | {field.description} |")
    return "\n".join(rows)


def _default_text(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return DEFAULTS_IN_WORDS[name]
    if isinstance(field.default, tuple):
        return f"`{','.join(field.default)}`" if field.default else "none"
    return "none" if field.default in (None, "") else f"`{field.default}`"


if __name__ == "__main__":
    print(markdown_table())
