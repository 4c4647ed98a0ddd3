"""What jobs may also run on: JobSet, Kubeflow Trainer and Kueue, in the dev cluster or beside a control plane alone.

Their manifests are those of their own modules.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from devcluster import containers, kube, tools, webhooks
from devcluster.kube import Object, parse
from devcluster.process import run
from devcluster.waiting import wait_for

Settings = Mapping[str, Any]
CONFIGURATION = "controller_manager_config.yaml"  # the key in the ConfigMap, and the file's name in the pod
# Each passes through a webhook of the engine when it is created.
PROBES: dict[str, Object] = {
    "jobset": {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "spec": {}},
    "trainer": {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "spec": {"template": {"spec": {"replicatedJobs": []}}},
    },
    "kueue": {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "spec": {}},
}
_WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")


@dataclass(frozen=True)
class Engine:
    """How one of them is installed: `folder` of its manifests, and its configuration file's own settings.

    `outside` are settings that hold beside a control plane alone.
    """

    folder: str
    version: str
    inside: Settings = field(default_factory=dict)
    outside: Settings = field(default_factory=dict)


ENGINES = {
    "jobset": Engine(
        "default", "config.jobset.x-k8s.io/v1alpha1", outside={"internalCertManagement": {"enable": False}}
    ),
    "trainer": Engine(
        "overlays/manager", "config.trainer.kubeflow.org/v1alpha1", outside={"certManagement": {"enable": False}}
    ),
    "kueue": Engine(
        "default",
        "config.kueue.x-k8s.io/v1beta2",
        # VisibilityOnDemand is an API server of its own, which ours has no certificates to call. The certificates stay
        # managed outside too: else Kueue asks for one for its metrics, which it does not serve.
        inside={
            "integrations": {"frameworks": ["kubeflow.org/pytorchjob", "trainer.kubeflow.org/trainjob"]},
            "featureGates": {"VisibilityOnDemand": False, "PriorityBoost": True},
        },
    ),
}


@contextmanager
def installed(*names: str) -> Iterator[None]:
    """Inside, the engines run in the dev cluster, each after those it needs; what was not there is gone after it."""
    new = [name for name in names if not kube.succeeds("get", "deployments", *_deployment(name))]
    for name in names:
        install(name)
    try:
        yield
    finally:
        # A cluster that was taken away meanwhile has taken them along.
        if kube.succeeds("get", "--raw=/readyz"):
            for name in reversed(new):
                remove(name)


def install(name: str, timeout: float = 180, **changes: Any) -> None:
    """The engine runs in the dev cluster and its webhooks answer; `changes` are merged into its configuration.

    JobSet must be there before Trainer, and Trainer before Kueue admits TrainJobs.
    """
    image = containers.ensure_image(name, {"/manager": tools.binary(name)}, ["/manager"])
    kube.apply(objects(name, image, configuration(name, changes)))
    kube.kubectl("rollout", "status", "deployment", *_deployment(name), f"--timeout={timeout:.0f}s")
    probe = json.dumps({**PROBES[name], "metadata": {"name": "probe"}})
    wait_for(
        f"{name}'s webhooks answer",
        lambda: kube.succeeds("create", "--dry-run=server", "--filename=-", given=probe),
        timeout,
    )


def remove(name: str) -> None:
    """Nothing of the engine is left in the dev cluster, and no object of its kinds."""
    found = rendered(name)
    # Its kinds first, while it runs to take its finalizers off their objects.
    kinds = [each for each in found if each["kind"] == "CustomResourceDefinition"]
    for part in (kinds, [each for each in found if each not in kinds]):
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": part})
        kube.kubectl("delete", "--ignore-not-found", "--filename=-", given=items)


def configuration(name: str, changes: Settings) -> Settings:
    """The engine's configuration in the dev cluster; `changes` are merged into it, section by section."""
    common: Settings = {
        "apiVersion": ENGINES[name].version,
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "health": {"healthProbeBindAddress": ":8081"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": 9443},
        "clientConnection": {"qps": 500, "burst": 1000},
    }
    return _merged(_merged(common, ENGINES[name].inside), changes)


def configuration_outside(name: str, folder: Path, port: Callable[[str], int], changes: Settings) -> Settings:
    """The same beside a control plane alone, with the certificates that `webhooks.certificates(folder)` made."""
    addresses: dict[str, dict[str, Any]] = {
        "health": {"healthProbeBindAddress": f"127.0.0.1:{port(f'{name}-health')}"},
        "webhook": {"port": port(f"{name}-webhook"), "host": "127.0.0.1"},
    }
    if name == "kueue":
        addresses["webhook"]["certDir"] = str(folder / webhooks.FOLDER)
    return _merged(_merged(configuration(name, ENGINES[name].outside), addresses), changes)


def objects(name: str, image: str, settings: Settings) -> list[Object]:
    """All that makes the engine run in a cluster."""
    text = json.dumps(settings, indent=2)
    found = rendered(name)
    for each in found:
        if each["kind"] == "ConfigMap" and CONFIGURATION in each["data"]:
            each["data"][CONFIGURATION] = text
        if each["kind"] == "Deployment":
            _deploy(each, image, text)
    return found


def objects_outside(name: str, webhook_port: int, certificates: dict[str, bytes]) -> list[Object]:
    """What has to be in the API server before the engine starts beside it."""
    kinds = ("Namespace", "Secret", "CustomResourceDefinition", *_WEBHOOKS)
    found = [each for each in rendered(name) if each["kind"] in kinds]
    for each in found:
        webhooks.call_at(each, webhook_port, certificates)
        if each["kind"] == "Secret":
            each["data"] = webhooks.data(certificates)
    return found


def command(name: str, kubeconfig: Path, configuration: Path) -> list[str | Path]:
    """The command line beside a control plane; TMPDIR must be the folder that `webhooks.certificates` was given."""
    return [tools.binary(name), f"--kubeconfig={kubeconfig}", f"--config={configuration}"]


def rendered(name: str) -> list[Object]:
    """The manifests as the engine's module ships them, but of Kueue's webhooks only those for our kinds of jobs.

    The others would be called for every pod, Job and Deployment of the cluster. An APIService that does not answer
    would keep every namespace from going.
    """
    found = [each for each in parse(_kustomized(name, tools.manifests(name))) if each["kind"] != "APIService"]
    for each in found:
        if name == "kueue" and each["kind"] in _WEBHOOKS:
            each["webhooks"] = [hook for hook in each["webhooks"] if _concerns_us(hook)]
    return found


def _deployment(name: str) -> tuple[str, str]:
    [found] = [each["metadata"] for each in rendered(name) if each["kind"] == "Deployment"]
    return found["name"], f"--namespace={found['namespace']}"


@cache
def _kustomized(name: str, manifests: Path) -> str:
    """Kustomize's output; Trainer's names JobSet's manifests by an address on the internet: JobSet has its own."""
    with tempfile.TemporaryDirectory(prefix="trl-kustomize-") as temporary:
        copy = Path(shutil.copytree(manifests, Path(temporary) / "manifests"))
        file = copy / ENGINES[name].folder / "kustomization.yaml"
        kustomization = yaml.safe_load(file.read_text())
        kustomization["resources"] = [each for each in kustomization["resources"] if "third-party" not in each]
        file.write_text(yaml.safe_dump(kustomization))
        return run(tools.binary("kubectl"), "kustomize", file.parent)


def _concerns_us(hook: Object) -> bool:
    [rule] = hook["rules"]
    return "kueue.x-k8s.io" in rule["apiGroups"] or bool({"pytorchjobs", "trainjobs"} & set(rule["resources"]))


def _deploy(deployment: Object, image: str, configuration: str) -> None:
    template = deployment["spec"]["template"]
    # A pod does not see that a file that is mounted alone has changed.
    digest = hashlib.sha256(configuration.encode()).hexdigest()[:16]
    template["metadata"].setdefault("annotations", {})["trl-operator.io/configuration"] = digest
    template["spec"].setdefault("securityContext", {})["runAsUser"] = 65532
    [container] = template["spec"]["containers"]
    container |= {"image": image, "imagePullPolicy": "IfNotPresent", "args": [f"--config=/{CONFIGURATION}"]}
    # They ask for half a CPU each; without any the pods that train leave them no time.
    container["resources"] = {"requests": {"cpu": "100m"}}
    container["readinessProbe"].update(initialDelaySeconds=1, periodSeconds=1)


def _merged(base: Settings, changes: Settings) -> Settings:
    both = {
        key: {**base[key], **value}
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **changes, **both}
