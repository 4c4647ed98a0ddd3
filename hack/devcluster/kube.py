"""kubectl against the dev cluster, as its administrator."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from devcluster import paths, tools
from devcluster.process import run

Object = dict[str, Any]


def kubectl(*arguments: str, given: str | None = None) -> str:
    """What kubectl prints; raises DevClusterError with its errors when it fails."""
    return run(*_command(), *arguments, given=given)


def succeeds(*arguments: str, given: str | None = None) -> bool:
    """Whether kubectl exits with 0."""
    return subprocess.run([*_command(), *arguments], input=given, text=True, capture_output=True).returncode == 0


def apply(objects: Sequence[Object]) -> None:
    """Server-side applies the objects, as client-side the training-operator's CRDs are too large."""
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", given=items)


def parse(text: str) -> list[Object]:
    """The objects in a YAML stream."""
    return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]


def _command() -> list[str]:
    return [str(tools.binary("kubectl")), f"--kubeconfig={paths.KUBECONFIG}", f"--cache-dir={paths.KUBECTL_CACHE}"]
