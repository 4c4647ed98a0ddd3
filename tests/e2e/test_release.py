"""The operator's release: an installation that was killed halfway blocks no later one; helm keeps to our folders."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import golang, paths, release
from devcluster.waiting import wait_for

METADATA = {"name": "trial"}
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": METADATA}
LABELS = {"app": "trial"}
# helm waits for it in vain: its claim does not exist.
NEVER_READY = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": METADATA,
    "spec": {
        "selector": {"matchLabels": LABELS},
        "template": {
            "metadata": {"labels": LABELS},
            "spec": {
                "containers": [{"name": "main", "image": "none"}],
                "volumes": [{"name": "none", "persistentVolumeClaim": {"claimName": "none"}}],
            },
        },
    },
}


@pytest.fixture
def write_chart(
    tmp_path: Path, make_namespace: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Writes the chart that `release` installs meanwhile, in a namespace of its own, in place of the operator's."""
    monkeypatch.setattr(release, "NAME", "trial")
    monkeypatch.setattr(release, "NAMESPACE", make_namespace())
    monkeypatch.setattr(release, "CHART", tmp_path)
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: trial, version: 1.0.0}")
    (tmp_path / "templates").mkdir()

    def write(*objects: dict[str, Any]) -> None:
        (tmp_path / "templates/all.yaml").write_text(yaml.safe_dump_all(objects))

    return write


def kill_while_helm_waits(kubeconfig: Path, pids: Callable[[str], list[int]]) -> None:
    """`release.install` and its helm are killed while helm waits."""
    names = {name: str(getattr(release, name)) for name in ("NAME", "NAMESPACE", "CHART")}
    code = f"from devcluster import release; vars(release).update({names}); release.install({str(kubeconfig)!r})"
    environment = {**os.environ, "PYTHONPATH": str(paths.REPOSITORY / "hack")}
    installing = subprocess.Popen([sys.executable, "-c", code], env=environment)

    def statuses() -> list[str]:
        return [found["status"] for found in release.revisions(kubeconfig)]

    wait_for("helm waits", lambda: statuses()[-1:] in (["pending-install"], ["pending-upgrade"]), 60)
    helm = f"upgrade {release.NAME} {release.CHART}"
    assert pids(helm)
    installing.kill()
    installing.wait()
    wait_for("helm dies with its starter", lambda: not pids(helm), 10)


def test_an_install_and_an_upgrade_that_were_killed_are_undone_by_the_next(
    kubectl: Any, write_chart: Callable[..., None], pids: Callable[[str], list[int]]
) -> None:
    write_chart(NEVER_READY)
    kill_while_helm_waits(kubectl.kubeconfig, pids)
    write_chart(CONFIG_MAP)
    release.install(kubectl.kubeconfig)
    assert [found["status"] for found in release.revisions(kubectl.kubeconfig)] == ["deployed"]

    write_chart(CONFIG_MAP, NEVER_READY)
    kill_while_helm_waits(kubectl.kubeconfig, pids)
    write_chart(CONFIG_MAP)
    release.install(kubectl.kubeconfig)
    statuses = [found["status"] for found in release.revisions(kubectl.kubeconfig)]
    assert statuses == ["superseded", "pending-upgrade", "superseded", "deployed"]
    objects = kubectl.get(f"--namespace={release.NAMESPACE}", "deployments,configmaps")["items"]
    assert sorted(found["metadata"]["name"] for found in objects) == ["kube-root-ca.crt", "trial"]


def test_helm_kubectl_and_go_write_nothing_into_the_home_of_their_user(
    kubectl: Any, write_chart: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    write_chart(CONFIG_MAP)
    release.install(kubectl.kubeconfig)
    kubectl("get", "nodes")
    subprocess.run([golang.installed(), "list"], env=golang.environment(), cwd=paths.TOOLS / "pause", check=True)
    assert list(home.iterdir()) == []
