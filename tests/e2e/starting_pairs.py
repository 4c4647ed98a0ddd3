"""How much later the containers of a TrainJob start than those of a PyTorchJob; a part of `make test-backends`."""

import time
from statistics import median
from typing import Any

from jobs import wait_for

PAIRS = 10
LATER_SECONDS = 5


def job(name: str, backend: str, image: str) -> dict[str, Any]:
    """A job of two pods whose image has no Python: its containers start, and that is all."""
    rows = [{"prompt": "Where is it?", "chosen": "I will look at once.", "rejected": "no idea"}] * 4
    spec = {
        "model": {"hub": {"repo": "org/base"}},
        "dataset": {"train": {"inline": rows}},
        "numNodes": 2,
        "storage": {"claimName": "shared"},
        "image": image,
        "backend": backend,
        "runPolicy": {"maxRestarts": 0},
    }
    return {"apiVersion": "trl-operator.io/v1alpha1", "kind": "DPOJob", "metadata": {"name": name}, "spec": spec}


def test_the_containers_of_a_trainjob_start_at_most_five_seconds_later(
    kubectl: Any, operator: None, status_server: None, namespace: str, busybox: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    kubectl.apply(claim, namespace=namespace)
    mine = f"--namespace={namespace}"

    def seconds(name: str, backend: str) -> float:
        """From apply until both containers have been started, or tried to."""
        kubectl.apply(job(name, backend, busybox), namespace=namespace)
        began = time.monotonic()
        while True:
            pods = kubectl.get(mine, "pods", f"--selector=trl-operator.io/job-name={name}")["items"]
            states = [each["state"] for pod in pods for each in pod["status"].get("containerStatuses", ())]
            if sum("running" in state or "terminated" in state for state in states) == 2:
                break
            assert time.monotonic() - began < 120, states
            time.sleep(0.2)
        took = time.monotonic() - began
        kubectl("delete", mine, f"dpojob/{name}")
        wait_for(lambda: not kubectl.get(mine, "pods")["items"], 120, lambda: kubectl("get", mine, "pods"))
        return took

    backends = ("pytorchjob", "trainjob")
    # The volume is made for the first one, which does not count.
    seconds("first", backends[0])
    found: dict[str, list[float]] = {backend: [] for backend in backends}
    for number in range(PAIRS):
        for backend in backends if number % 2 else reversed(backends):
            found[backend].append(seconds(f"{backend}-{number}", backend))
    told = {backend: f"{median(each):.1f} s ({min(each):.1f} to {max(each):.1f})" for backend, each in found.items()}
    print(f"median of {PAIRS} alternating pairs, from apply to two containers that have started: {told}")
    assert median(found["trainjob"]) - median(found["pytorchjob"]) <= LATER_SECONDS
