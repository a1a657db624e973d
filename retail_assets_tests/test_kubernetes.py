"""What `deploy/kubernetes` names exists, and is what Kubernetes' API takes, by schemas at hand."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster._cli import create_dagster_cli
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_k8s import K8sRunLauncher
from dagster_webserver.cli import dagster_webserver
from typer.main import get_group

from retail_assets.cli import app as cli
from retail_assets.settings import Settings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
BIN = PurePosixPath("/opt/retail_assets/.venv/bin")
API = "1.34"

KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
DAGSTER = yaml.safe_load((FOLDER / "dagster.yaml").read_text())

OBJECTS: list[dict[str, Any]] = [
    each
    for name in KUSTOMIZATION["resources"]
    for each in yaml.safe_load_all((FOLDER / name).read_text())
]

PODS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"]
    for each in OBJECTS
    if each["kind"] in ("Deployment", "Job")
}

CONTAINERS = [
    container
    for pod in PODS.values()
    for container in (*pod.get("initContainers", ()), *pod["containers"])
]

PROGRAMS = {
    "retail-assets": lambda: get_group(cli.app),
    "dagster": create_dagster_cli,
    "dagster-daemon": create_dagster_daemon_cli,
    "dagster-webserver": lambda: dagster_webserver,
}


def name_of(thing: dict[str, Any]) -> str:
    return str(thing.get("name") or f"{thing['kind']}-{thing['metadata']['name']}")


def environment(container: dict[str, Any]) -> dict[str, str]:
    """The variables that the manifests set themselves."""
    settings = (FOLDER / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in settings) | {
        each["name"]: each["value"] for each in container.get("env", ())
    }


def commands(container: dict[str, Any]) -> list[list[str]]:
    """The command of a container and those of its probes, with its variables in them."""
    probes = (container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness"))
    found = [container["command"], *(p["exec"]["command"] for p in probes if "exec" in p)]
    known = environment(container)
    return [
        [
            # A file that is mounted there.
            re.sub(r"\$\((\w+)\)", lambda match: known[match[1]], text).replace(
                f"{known['DAGSTER_HOME']}/", f"{FOLDER}/"
            )
            for text in command
        ]
        for command in found
    ]


def parse(program: Any, arguments: list[str]) -> None:
    """Have a command read its arguments, without doing what it does."""
    while hasattr(program, "commands"):
        program, arguments = program.commands[arguments[0]], arguments[1:]
    program.make_context("", list(arguments))


@pytest.mark.parametrize(
    "thing", [each for each in OBJECTS if each["kind"] != "ScaledObject"], ids=name_of
)
def test_each_object_is_one_that_the_api_takes(thing: dict[str, Any]) -> None:
    kubernetes_validate.validate(thing, API, strict=True)


def test_a_mistyped_field_would_be_found() -> None:
    (thing,) = [each for each in OBJECTS if each["kind"] == "Namespace"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**thing, "spec": {"finaliser": []}}, API, strict=True)


@pytest.mark.parametrize("container", CONTAINERS, ids=name_of)
def test_commands_and_probes_are_those_of_the_image(container: dict[str, Any]) -> None:
    for program, *arguments in commands(container):
        assert PurePosixPath(program).parent == BIN
        parse(PROGRAMS[PurePosixPath(program).name](), arguments)


@pytest.mark.parametrize("container", CONTAINERS, ids=name_of)
def test_a_pod_has_limits_and_may_write_to_its_own_folders_only(container: dict[str, Any]) -> None:
    assert {"cpu", "memory"} == set(container["resources"]["limits"])
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    pod = next(pod for pod in PODS.values() if container in CONTAINERS and has(pod, container))
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {environment(container)["RETAIL_DATA_DIR"], environment(container)["DAGSTER_HOME"]} <= (
        paths
    )


def has(pod: dict[str, Any], container: dict[str, Any]) -> bool:
    return any(each is container for each in (*pod.get("initContainers", ()), *pod["containers"]))


def test_every_setting_that_is_named_exists() -> None:
    text = "".join(path.read_text() for path in FOLDER.iterdir())
    named = {name.removeprefix("RETAIL_").lower() for name in re.findall(r"\bRETAIL_[A-Z_]+", text)}
    assert named
    assert named <= set(Settings.model_fields)


def test_secrets_are_referred_to_and_never_written_down() -> None:
    assert not [each for each in OBJECTS if each["kind"] == "Secret"]
    for container in CONTAINERS:
        assert {"secretRef": {"name": "retail-secrets"}} in container["envFrom"]
    secret = ("PASSWORD", "TOKEN", "SECRET_ACCESS_KEY")
    for line in (FOLDER / "settings.env").read_text().splitlines():
        assert not any(word in line.split("=")[0] for word in secret)


def test_objects_name_each_other_rightly() -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in OBJECTS}
    maps = {each["name"] for each in KUSTOMIZATION["configMapGenerator"]}
    for pod in PODS.values():
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        used = {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v}
        assert used <= maps
    for each in OBJECTS:
        if each["kind"] in ("Service", "PodDisruptionBudget"):
            selector = each["spec"]["selector"]
            assert selector.get("matchLabels", selector)["app"] in PODS
    (workspace,) = yaml.safe_load((FOLDER / "workspace.yaml").read_text())["load_from"]
    host, port = workspace["grpc_server"]["host"], workspace["grpc_server"]["port"]
    assert ("Service", host) in names
    assert str(port) in PODS[host]["containers"][0]["command"]
    for generator in KUSTOMIZATION["configMapGenerator"]:
        for file in (*generator.get("files", ()), *generator.get("envs", ())):
            assert (FOLDER / file).is_file()


def test_workers_of_the_stream_follow_the_lag_of_their_own_topic_and_group() -> None:
    (scaled,) = [each for each in OBJECTS if each["kind"] == "ScaledObject"]
    assert scaled["spec"]["scaleTargetRef"]["name"] in PODS
    (stream,) = PODS["retail-stream"]["containers"]
    (trigger,) = scaled["spec"]["triggers"]
    (command,) = commands(stream)
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert trigger["metadata"]["topic"] == options["--topic"]
    assert trigger["metadata"]["consumerGroup"] == options["--group"]
    assert trigger["metadata"]["bootstrapServers"] == options["--kafka"]
    assert PODS["retail-stream"]["terminationGracePeriodSeconds"] > Settings().stop_seconds


def test_dagster_takes_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://retail@postgres.example/dagster")
    checked = process_config(resolve_to_config_type(dagster_instance_config_schema()), DAGSTER)
    assert checked.success, checked.errors
    launcher = DAGSTER["run_launcher"]
    checked = process_config(
        resolve_to_config_type(K8sRunLauncher.config_type()), launcher["config"]
    )
    assert checked.success, checked.errors
    accounts = {e["metadata"]["name"] for e in OBJECTS if e["kind"] == "ServiceAccount"}
    assert launcher["config"]["service_account_name"] in accounts
    assert launcher["config"]["job_namespace"] == KUSTOMIZATION["namespace"]
