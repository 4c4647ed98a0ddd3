"""The operator in a cluster: the chart of this checkout, installed by helm."""

import os
from pathlib import Path

from devcluster import images, paths, tools
from devcluster.process import run

NAME = "trl-operator"
NAMESPACE = "trl-system"
CHART = paths.REPOSITORY / "deploy/helm/trl-operator"


def install(kubeconfig: Path) -> None:
    """The chart is installed with this checkout's images and its pods are ready; raises DevClusterError if not.

    On a cluster that is not ours the images must be where its nodes find them: IMAGE_REGISTRY names the registry.
    """
    values = {"trainer.image": reference("trainer")}
    repository, _, tag = reference("operator").rpartition(":")
    values |= {"image.repository": repository, "image.tag": tag}
    # The tag stays the same when the code changes, so a mark of the code has to make the pods new.
    values["podAnnotations.inputs"] = images.plan("operator", paths.REPOSITORY)[-1].inputs
    run(
        tools.binary("helm"),
        f"--kubeconfig={kubeconfig}",
        *("upgrade", NAME, str(CHART), "--install", "--create-namespace", f"--namespace={NAMESPACE}"),
        *("--wait", "--timeout=180s", "--reset-values"),
        *(f"--set-string={key}={value}" for key, value in values.items()),
    )


def reference(image: str) -> str:
    """Return the image by the name that the cluster's nodes know it by."""
    registry = os.environ.get("IMAGE_REGISTRY")
    return f"{registry}/trl-{image}:dev" if registry else images.reference(image)
