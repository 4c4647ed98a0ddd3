"""What runs in the cluster from the start: training-operator, default StorageClass, and CoreDNS' permissions."""

import json
from pathlib import Path

from devcluster import containers, kube, paths, tools
from devcluster.kube import Object
from devcluster.waiting import wait_for

# A burst of jobs must not wait for the training-operator's own limits (20 queries a second, one thread).
TRAINING_OPERATOR_FLAGS = (
    "--enable-scheme=pytorchjob",
    "--kube-api-qps=500",
    "--kube-api-burst=1000",
    "--controller-threads=10",
)
HELPER = "busybox"
HELPER_COMMANDS = ("sh", "cat", "chmod", "id", "ls", "mkdir", "nslookup", "rm", "sleep", "tail", "touch", "wget")


def install() -> None:
    """All of it is applied; `wait` waits for it."""
    operator, provisioner = tools.binary("training-operator"), tools.binary("local-path-provisioner")
    operator_image = containers.ensure_image("training-operator", {"/manager": operator}, ["/manager"])
    provisioner_image = containers.ensure_image(
        "local-path-provisioner", {"/usr/bin/local-path-provisioner": provisioner}, ["local-path-provisioner"]
    )
    rendered = kube.kubectl("kustomize", str(tools.manifests("training-operator") / "overlays" / "standalone"))
    storage = (tools.manifests("local-path-provisioner") / "local-path-storage.yaml").read_text()
    kube.apply(
        [
            *coredns_permissions(),
            *training_operator(kube.parse(rendered), operator_image),
            *local_path(kube.parse(storage), provisioner_image, helper_image()),
        ]
    )


def helper_image() -> str:
    """The name of the image with a static busybox that makes and removes volumes; imported if it is not there."""
    links: dict[str, Path | str] = {f"/bin/{name}": "busybox" for name in HELPER_COMMANDS}
    return containers.ensure_image(HELPER, {"/bin/busybox": Path("/bin/busybox"), **links}, ["/bin/sh"])


def wait(timeout: float) -> None:
    """The addons work: deployments are available, DNS is ready, and the training-operator's webhook answers."""
    limit = f"--timeout={timeout:.0f}s"
    for namespace, name in (("local-path-storage", "local-path-provisioner"), ("kubeflow", "training-operator")):
        kube.kubectl("wait", "--for=condition=Available", limit, f"--namespace={namespace}", f"deployment/{name}")
    probe = json.dumps(_smallest_job())
    wait_for(
        "the training-operator's webhook answers",
        lambda: kube.succeeds("create", "--dry-run=server", "--filename=-", given=probe),
        timeout,
    )


def training_operator(objects: list[Object], image: str) -> list[Object]:
    """The training-operator's own manifests, for PyTorchJob only, with our image and lifted limits."""
    return [
        _training_operator_object(found, image)
        for found in objects
        if found["kind"] != "CustomResourceDefinition" or found["spec"]["names"]["kind"] == "PyTorchJob"
    ]


def _training_operator_object(found: Object, image: str) -> Object:
    if found["kind"] == "ValidatingWebhookConfiguration":
        found["webhooks"] = [hook for hook in found["webhooks"] if "pytorchjob" in hook["name"]]
    if found["kind"] == "Deployment":
        container = found["spec"]["template"]["spec"]["containers"][0]
        container["image"] = image
        container["args"] = list(TRAINING_OPERATOR_FLAGS)
        # Upstream asks after 10 s and then every 15 s.
        container["readinessProbe"].update(initialDelaySeconds=1, periodSeconds=1)
    return found


def local_path(objects: list[Object], image: str, helper: str) -> list[Object]:
    """local-path-provisioner's own manifests as the default StorageClass, with volumes in a folder of the cluster."""
    for found in objects:
        match found["kind"]:
            case "Deployment":
                found["spec"]["template"]["spec"]["containers"][0]["image"] = image
            case "StorageClass":
                found["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
            case "ConfigMap":
                # A file system that all nodes share allows ReadWriteMany; with one node every folder is one.
                shared = {"nodePathMap": [], "sharedFileSystemPath": str(paths.VOLUMES)}
                pod = kube.parse(found["data"]["helperPod.yaml"])[0]
                pod["spec"]["containers"][0]["image"] = helper
                found["data"] |= {"config.json": json.dumps(shared), "helperPod.yaml": json.dumps(pod)}
    return objects


def coredns_permissions() -> list[Object]:
    """What CoreDNS, which runs on the host as the user system:coredns, reads."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
    }
    return [role, binding]


def _smallest_job() -> Object:
    container = {"name": "pytorch", "image": "none"}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": {"spec": {"containers": [container]}}}}},
    }
