"""A control plane for the whole session, and for each test a namespace and a node of its own."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from kubernetes import client, config

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for

CRDS = sorted((REPOSITORY / "deploy" / "crds").glob("*.yaml"))
Kubectl = Callable[..., str]
SUMMARY = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """The control plane that the tests share, with this project's CRDs.

    `kubeconfig_for_service_account(namespace, name)` of it is for a program that runs under RBAC.
    """
    yield from _control_plane(request)


@pytest.fixture(scope="session")
def second_control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """Another one beside it, for tests that need two clusters, or that stop or restart a part of one."""
    yield from _control_plane(request)


@pytest.fixture(scope="session")
def engines_control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """One with JobSet, Trainer and Kueue as well.

    A folder whose tests all run on it overrides `control_plane`, on which `namespace`, `kubectl` and `node` stand.
    """
    yield from _control_plane(request, ("jobset", "trainer", "kueue"))


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """The name of a new namespace in which pods are admitted; it is deleted afterwards, in the background."""
    yield from _namespace(control_plane)


@pytest.fixture
def other_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """Another one, of somebody else."""
    yield from _namespace(control_plane)


def _namespace(control_plane: ControlPlane) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(config.new_client_from_config(str(control_plane.kubeconfig)))
    core.create_namespace({"metadata": {"name": name}})

    def has_default_account() -> bool:
        accounts = core.list_namespaced_service_account(name, field_selector="metadata.name=default")
        return bool(accounts.items)

    wait_for(f"the namespace {name} has its default ServiceAccount", has_default_account, 30, 0.02)
    yield name
    core.delete_namespace(name)
    # A pod that its node has left behind would keep the namespace for ever.
    core.delete_collection_namespaced_pod(name, grace_period_seconds=0)


@pytest.fixture
def kubectl(control_plane: ControlPlane, namespace: str) -> Kubectl:
    """`control_plane.kubectl` in the test's namespace."""
    return partial(control_plane.kubectl, f"--namespace={namespace}")


@pytest.fixture
def node(control_plane: ControlPlane, namespace: str) -> Iterator[FakeNode]:
    """A node that takes the pods of the test's namespace and waits for the test to say what becomes of them."""
    with FakeNode(control_plane.kubeconfig, f"node-{namespace}", namespace) as node:
        yield node


def _control_plane(request: pytest.FixtureRequest, engines: Sequence[str] = ()) -> Iterator[ControlPlane]:
    with ControlPlane(crds=CRDS, engines=engines) as plane:
        yield plane
        plane.keep = request.session.testsfailed > 0
        kept = f"; its logs are in {plane.logs}" if plane.keep else ""
        said = f"A control plane of these tests had started in {plane.start_seconds:.1f} s{kept}"
        request.config.stash.setdefault(SUMMARY, []).append(said)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(SUMMARY, []):
        terminalreporter.line(line)
