"""The operator in a cluster: the chart of this checkout, installed by helm."""

import json
import os
from pathlib import Path
from typing import Any

from devcluster import images, paths, tools
from devcluster.process import DIES_WITH_US, run

NAME = "trl-operator"
NAMESPACE = "trl-system"
CHART = paths.REPOSITORY / "deploy/helm/trl-operator"


def install(kubeconfig: Path, **changes: str) -> None:
    """The chart is installed with this checkout's images and its pods are ready; raises DevClusterError if not.

    `changes` are values of the chart, as helm's --set takes them.
    On a cluster that is not ours the images must be where its nodes find them: IMAGE_REGISTRY names the registry.
    What a helm that was killed has left half done is undone first: helm would refuse to touch it ever again.
    """
    values = {"trainer.image": reference("trainer")}
    repository, _, tag = reference("operator").rpartition(":")
    values |= {"image.repository": repository, "image.tag": tag}
    # The tag stays the same when the code changes, so a mark of the code has to make the pods new.
    values["podAnnotations.inputs"] = images.plan("operator", paths.REPOSITORY)[-1].inputs
    if undo := recovery(revisions(kubeconfig)):
        print(f"operator: helm was interrupted earlier; undone by: helm {' '.join(undo)}", flush=True)
        helm(kubeconfig, *undo)
    helm(
        kubeconfig,
        *("upgrade", NAME, str(CHART), "--install", "--create-namespace"),
        *("--wait", "--timeout=180s", "--reset-values"),
        *(f"--set-string={key}={value}" for key, value in values.items()),
        *(f"--set={key}={value}" for key, value in changes.items()),
    )


def recovery(revisions: list[dict[str, Any]]) -> list[str]:
    """The arguments for helm that undo what was interrupted, given `helm history`'s list; none if nothing was."""
    if not revisions or not revisions[-1]["status"].startswith(("pending-", "uninstalling")):
        return []
    deployed = [found["revision"] for found in revisions if found["status"] == "deployed"]
    return ["rollback", NAME, str(deployed[-1])] if deployed else ["uninstall", NAME]


def revisions(kubeconfig: Path) -> list[dict[str, Any]]:
    """The release's revisions, oldest first, each with `revision` and `status`; empty where it is not installed."""
    mine = ("list", "--all", f"--filter=^{NAME}$", "--output=json")
    if not json.loads(helm(kubeconfig, *mine)):
        return []
    found: list[dict[str, Any]] = json.loads(helm(kubeconfig, "history", NAME, "--output=json"))
    return found


def helm(kubeconfig: Path, *arguments: str) -> str:
    """What helm prints, in the release's namespace; its caches are in ours."""
    folder = paths.CACHE / "helm"
    folders = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    return run(
        *(*DIES_WITH_US, tools.binary("helm"), f"--kubeconfig={kubeconfig}", f"--namespace={NAMESPACE}"),
        *arguments,
        env={**folders, "KUBECACHEDIR": str(paths.CACHE / "kubectl")},
    )


def reference(image: str) -> str:
    """Return the image by the name that the cluster's nodes know it by."""
    registry = os.environ.get("IMAGE_REGISTRY")
    return f"{registry}/trl-{image}:dev" if registry else images.reference(image)
