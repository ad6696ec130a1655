"""The files in deploy/: they parse, fit the schemas of what reads them, and name what the server really has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from starlette.testclient import TestClient

from serving.settings import PREFIX, Settings
from tests.serving.sample_images import jpeg

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/convmae.json"
YAML_FILES = sorted(DEPLOY.rglob("*.yaml"))
NAME = re.compile(r"\b(?:convmae|process)_[a-z_]+")
SERIES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
ROOM_FOR_THE_MODEL = 500_000_000  # bytes, and for the program
ON_A_GPU = {"convmae_batch_rows", "convmae_batch_queue_seconds"}  # which a page without one does not show


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def of_kind(kind: str) -> dict[str, Any]:
    """The one object of a kind in kubernetes.yaml."""
    (found,) = (one for one in documents(DEPLOY / "kubernetes.yaml") if one["kind"] == kind)
    return found


def containers() -> dict[str, dict[str, Any]]:
    """The server's container, by the file that describes it."""
    kserve = documents(DEPLOY / "kserve.yaml")[0]["spec"]["predictor"]
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    return {"kubernetes.yaml": pod["containers"][0], "kserve.yaml": kserve["containers"][0]}


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_parses_and_says_nothing_twice(path: Path) -> None:
    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that comes twice, of which YAML would keep the last."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return dict(loader.construct_mapping(node, deep=True))

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert [document for document in yaml.load_all(path.read_text(encoding="utf-8"), Strict) if document]


@pytest.mark.parametrize("document", documents(DEPLOY / "kubernetes.yaml"), ids=lambda document: document["kind"])
def test_kubernetes_takes_each_object(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_takes_the_pod_of_kserve() -> None:
    predictor = documents(DEPLOY / "kserve.yaml")[0]["spec"]["predictor"]
    of_kserve = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}
    spec = {name: value for name, value in predictor.items() if name not in of_kserve}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "convmae"}, "spec": spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_a_container_may_do_nothing_that_it_need_not(file: str) -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    if file == "kserve.yaml":
        pod = documents(DEPLOY / file)[0]["spec"]["predictor"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["enableServiceLinks"]
    assert not pod["automountServiceAccountToken"]
    container = containers()[file]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert "/tmp" in mounted
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def settings_of(environment: list[dict[str, Any]]) -> dict[str, str]:
    """The settings that a container is given, with what stands for a value from elsewhere."""
    return {entry["name"]: entry.get("value", "2") for entry in environment if entry["name"].startswith(PREFIX)}


def test_every_setting_that_a_file_names_is_one() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    named = {
        name
        for path in DEPLOY.rglob("*")
        if path.is_file()
        for name in re.findall(rf"\b{PREFIX}[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))
    }
    assert {"CONVMAE_DRAIN_SECONDS", "CONVMAE_API_KEY_FILE"} <= named <= known


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_the_settings_are_allowed_and_a_pod_has_time_to_end(
    file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("0123456789abcdef")
    for name, value in settings_of(containers()[file]["env"]).items():
        monkeypatch.setenv(name, str(tmp_path / "key") if name.endswith("_FILE") else value)
    settings = Settings()
    assert settings.drain_seconds == 10
    grace = 30  # Kubernetes' default
    if file == "kubernetes.yaml":
        grace = of_kind("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert settings.api_key is not None
    assert settings.drain_seconds + settings.shutdown_seconds < grace
    compose = documents(DEPLOY / "compose.yaml")[0]["services"]["convmae"]
    assert int(compose["stop_grace_period"].removesuffix("s")) > settings.shutdown_seconds


def test_what_the_server_may_hold_fits_into_the_memory_that_it_is_given() -> None:
    compose = documents(DEPLOY / "compose.yaml")[0]["services"]["convmae"]
    assert compose["mem_limit"] == "2g"
    given = {"compose.yaml": compose["environment"]}
    for file, container in containers().items():
        assert container["resources"]["limits"]["memory"] == "2Gi"
        given[file] = settings_of(container["env"])
    for file, settings in given.items():
        held = sum(int(settings[f"CONVMAE_MAX_{name}_BYTES"]) for name in ("BUFFERED", "UNREAD"))
        assert held + 2**31 // 2 + ROOM_FOR_THE_MODEL <= 2**31, file  # half of the memory is for decoding


def test_the_key_to_be_set_is_none_that_the_server_would_take() -> None:
    with pytest.raises(ValueError, match="at least 16 characters"):
        Settings(api_key=of_kind("Secret")["stringData"]["api-key"])


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_probes_ask_paths_that_the_server_answers_without_a_key(client: TestClient, file: str) -> None:
    container = containers()[file]
    probes = [probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")]
    assert len(probes) >= 2
    assert [client.get(path).status_code for path in probes] == [200] * len(probes)


def test_the_parts_of_the_manifest_are_about_one_another() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert (
        of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == of_kind("Deployment")["metadata"]["name"]
    )
    ports = {port["name"] for port in containers()["kubernetes.yaml"]["ports"]}
    assert {of_kind("Service")["spec"]["ports"][0]["targetPort"]} == ports


def has(page: str) -> set[str]:
    """All names of series that a page of metrics offers."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)) | dict.fromkeys(ON_A_GPU, "histogram")
    return {
        name.removesuffix("_total") + end if kind == "counter" else name + end
        for name, kind in kinds.items()
        for end in SERIES[kind]
    }


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression that is asked of Prometheus, with where it stands."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for group in documents(DEPLOY / "prometheus/alerts.yaml")[0]["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])
    for rule in documents(DEPLOY / "prometheus/adapter.yaml")[0]["rules"]["custom"]:
        yield "adapter", rule["seriesQuery"]
    for metric in of_kind("HorizontalPodAutoscaler")["spec"]["metrics"]:
        yield "autoscaler", metric["pods"]["metric"]["name"]


def test_every_metric_that_is_asked_for_is_one_that_the_server_has(client: TestClient) -> None:
    client.post("/v1/classify", content=jpeg())
    client.post("/v1/classify", content=b"text")
    offered = has(client.get("/metrics").text)
    asked = {(where, name) for where, expression in expressions() for name in NAME.findall(expression)}
    assert {(where, name) for where, name in asked if name not in offered} == set()
    assert len({name for _, name in asked}) > 15


def test_labels_that_are_asked_for_are_there(client: TestClient) -> None:
    client.post("/v1/classify", content=jpeg())
    page = client.get("/metrics").text
    for label in ('route="/v1/classify"', 'status="200"', 'phase="queue"', 'phase="inference"', 'model="tiny"'):
        assert label in page


def test_the_dashboard_is_complete() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24  # none lies over another
    (source,) = documents(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert "$instance" in panels[0]["targets"][0]["expr"]


def test_compose_mounts_files_that_are_there_and_starts_what_the_others_ask_for() -> None:
    compose = documents(DEPLOY / "compose.yaml")[0]
    services = compose["services"]
    mounts = [mount.split(":") for service in services.values() for mount in service.get("volumes", [])]
    for source, target, *_ in mounts:
        assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], (source, target)
    assert (DEPLOY / services["convmae"]["build"]["context"] / services["convmae"]["build"]["dockerfile"]).is_file()
    (job,) = documents(DEPLOY / "prometheus/prometheus.yaml")[0]["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["convmae:3000"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{services['prometheus']['secrets'][0]}"
    targets = {target for _, target, *_ in mounts}
    (provider,) = documents(DEPLOY / "grafana/provisioning/dashboards/convmae.yaml")[0]["providers"]
    assert provider["options"]["path"] in targets
