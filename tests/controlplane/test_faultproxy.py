"""The fault proxy does to a client of the real API server what it says, and nothing else."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead
from queue import Empty, Queue
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.faultproxy import Delay, FaultProxy, Request, Verdict


class Client:
    """The administrator's, through the proxy: its ConfigMaps in a namespace."""

    def __init__(self, plane: ControlPlane, proxy: FaultProxy, namespace: str) -> None:
        plane.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "any", "namespace": namespace}})
        rights = ("create", "rolebinding", "any", "--clusterrole=cluster-admin", f"--serviceaccount={namespace}:any")
        plane.kubectl(*rights, f"--namespace={namespace}")
        config = json.loads(plane.kubeconfig_for_service_account(namespace, "any").read_text())
        self.token = config["users"][0]["user"]["token"]
        self.url = f"{proxy.url}/api/v1/namespaces/{namespace}/configmaps"

    def open(self, query: str = "", body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body else None
        return urllib.request.urlopen(urllib.request.Request(self.url + query, data, headers), timeout=20)

    def make(self, name: str) -> None:
        self.open(body={"metadata": {"name": name}}).close()

    def names(self) -> set[str]:
        with self.open() as answer:
            return {item["metadata"]["name"] for item in json.load(answer)["items"]} - {"kube-root-ca.crt"}


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[FaultProxy]:
    with FaultProxy(control_plane.url, control_plane.ca) as made:
        yield made


@pytest.fixture
def api(control_plane: ControlPlane, proxy: FaultProxy, namespace: str) -> Client:
    return Client(control_plane, proxy, namespace)


def always(verdict: Verdict) -> Any:
    return lambda _: verdict


def test_requests_are_delayed_dropped_refused_cut_short_and_answered_from_the_past(
    proxy: FaultProxy, api: Client
) -> None:
    shown: list[Request] = []

    def show(request: Request) -> Verdict:
        shown.append(request)
        return "pass"

    proxy.before = show
    assert api.names() == set()
    api.make("one")
    assert [(r.method, r.resource, r.lists, r.writes) for r in shown] == [
        ("GET", "configmaps", True, False),
        ("POST", "configmaps", False, True),
    ]
    proxy.before = always("stale")
    assert api.names() == set()
    proxy.before = always(Delay(0.5))
    began = time.monotonic()
    assert api.names() == {"one"}
    assert time.monotonic() - began >= 0.5
    proxy.before = always(429)
    with pytest.raises(urllib.error.HTTPError) as refused:
        api.names()
    assert (refused.value.code, refused.value.headers["Retry-After"]) == (429, "3")
    proxy.before = always("reset")
    with pytest.raises(OSError, match=r"closed|reset"):
        api.make("never-there")
    proxy.before = always("pass")
    proxy.after = always("reset")
    with pytest.raises(OSError, match=r"closed|reset"):
        api.make("there-unknown-to-its-maker")
    proxy.after = always("truncate")
    with pytest.raises((ValueError, IncompleteRead)):
        api.names()
    proxy.after = always("pass")
    assert api.names() == {"one", "there-unknown-to-its-maker"}


def test_watches_are_frozen_and_cut(proxy: FaultProxy, api: Client) -> None:
    told: Queue[str] = Queue()

    def follow() -> None:
        try:
            with api.open("?watch=1&timeoutSeconds=60") as events:
                for line in events:
                    told.put(json.loads(line)["object"]["metadata"]["name"])
        except OSError:
            pass
        told.put("over")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    api.make("before")
    while told.get(timeout=10) != "before":
        pass
    proxy.freeze_watches()
    api.make("meanwhile")
    with pytest.raises(Empty):
        told.get(timeout=1)
    proxy.thaw_watches()
    assert told.get(timeout=10) == "meanwhile"
    proxy.cut_watches()
    assert told.get(timeout=10) == "over"
    thread.join(10)
    assert api.names() == {"before", "meanwhile"}
