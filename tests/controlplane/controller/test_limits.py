"""The admin's limits hold at the API server: no operator sees these jobs."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client, config

from devcluster.controlplane import ControlPlane
from devcluster.waiting import wait_for
from trl_contract.base import for_cel
from trl_contract.resources import GPU

Obj = dict[str, Any]
Create = Callable[..., str]
Enforce = Callable[..., Create]

VALUES = (
    "limits.serviceAccounts={trainer,other}",
    "limits.images={example.com/one@sha256:0}",
    "limits.registries={registry.example.com/team}",
    "limits.hub=false",
    "limits.maxNumNodes=4",
    "limits.maxGpus=8",
    "limits.rewardHosts={score.team.svc,*.example.com}",
)
SHARED = {"claimName": "shared"}
LOCAL = {"volume": {"claimName": "c", "path": "p"}}
ON_HUB = {"hub": {"repo": "org/base"}}


def reward(url: str) -> Obj:
    return {"grpo": {"rewards": [{"name": "h", "http": {"url": url}}]}}


BEYOND: list[tuple[str, Obj, tuple[str, ...]]] = [
    ("DPOJob", {"pod": {"serviceAccountName": "root"}}, ("spec.pod.serviceAccountName is root", "trainer, other")),
    (
        "DPOJob",
        {"image": "example.com/one:latest"},
        ("spec.image is example.com/one:latest", "registry.example.com/te"),
    ),
    ("SFTJob", {"image": "registry.example.com/teamwork/x"}, ("spec.image is registry.example.com/teamwork/x",)),
    ("DPOJob", {"numNodes": 5}, ("spec.numNodes is 5", "at most 4")),
    ("DPOJob", {"numNodes": 3, "resources": {"limits": {"nvidia.com/gpu": 4}}}, ("numNodes x GPUs is 12", "at most 8")),
    ("SFTJob", {"resources": {"limits": {"nvidia.com/mig-1g.5gb": "9"}}}, ("numNodes x GPUs is 9", "at most 8")),
    ("DPOJob", {"model": ON_HUB}, ("spec.model.hub names org/base", "use volume")),
    ("RewardJob", {"dataset": {"train": ON_HUB}}, ("spec.dataset.train.hub names org/base",)),
    ("SFTJob", {"dataset": {"train": LOCAL, "eval": ON_HUB}}, ("spec.dataset.eval.hub names org/base",)),
    ("SFTJob", {"dataset": {"mixture": [LOCAL, ON_HUB]}}, ("spec.dataset.mixture.hub names org/base",)),
    (
        "DPOJob",
        {"dpo": {"referenceModel": {"mode": "explicit", "source": ON_HUB}}},
        ("spec.dpo.referenceModel.source.hub names org/base",),
    ),
    ("GRPOJob", reward("https://score.example.org/"), ("http.url names score.example.org", "ask only: score.team.svc")),
    ("GRPOJob", reward("https://badexample.com/"), ("http.url names badexample.com",)),
    *[
        ("GRPOJob", {"pod": pod, **reward("http://score.team.svc/")}, (f"spec.pod.{field} would say", "score.team.svc"))
        for field, pod in (
            ("hostAliases", {"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["score.team.svc"]}]}),
            ("dnsConfig", {"dnsConfig": {"nameservers": ["192.0.2.1"]}}),
        )
    ],
]
WITHIN: list[tuple[str, Obj]] = [
    *((kind, {}) for kind in ("SFTJob", "RewardJob", "DPOJob")),
    ("DPOJob", {"pod": {"serviceAccountName": "other"}, "image": "example.com/one@sha256:0"}),
    ("DPOJob", {"image": "registry.example.com/team/x/y:1", "numNodes": 4}),
    ("DPOJob", {"numNodes": 2, "resources": {"limits": {"nvidia.com/gpu": 4, "cpu": 40}}}),
    ("GRPOJob", reward("http://score.team.svc:8080/v1")),
    ("GRPOJob", reward("https://a.b.example.com/")),
]


def job(kind: str, spec: Obj, name: str = "job") -> Obj:
    base = {"model": LOCAL, "dataset": {"train": LOCAL}, "storage": SHARED}
    return {
        "apiVersion": "trl-operator.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": {**base, **spec},
    }  # fmt: skip


@pytest.fixture
def enforce(control_plane: ControlPlane, namespace: str, render_chart: Callable[..., list[Obj]]) -> Iterator[Enforce]:
    """Put the chart's limits into force for the test's namespace; returns what creates a job there as a dry run and
    says why it was refused, or nothing."""
    made: list[str] = []

    api = client.ApiClient(config.load_kube_config(str(control_plane.kubeconfig)))

    def create(obj: Obj, namespace: str = namespace) -> str:
        place = ("trl-operator.io", "v1alpha1", namespace, f"{obj['kind'].lower()}s", obj)
        try:
            client.CustomObjectsApi(api).create_namespaced_custom_object(*place, dry_run="All")
        except client.ApiException as error:
            return str(json.loads(error.body)["message"])
        return ""

    def enforced(*values: str) -> Create:
        for obj in render_chart(namespace, f"scope.namespaces={{{namespace}}}", *values):
            if obj["kind"].startswith("ValidatingAdmissionPolicy"):
                obj["metadata"]["name"] += f"-{namespace}"
                if "policyName" in obj["spec"]:
                    obj["spec"]["policyName"] += f"-{namespace}"
                control_plane.apply(obj)
                made.append(f"{obj['kind']}/{obj['metadata']['name']}")
        bad = job("DPOJob", {"pod": {"serviceAccountName": "nobody"}})
        wait_for("the limits are in force", lambda: create(bad) != "", 30, 0.2)
        return create

    yield enforced
    for each in made:
        control_plane.kubectl("delete", each, "--wait=false")
    api.close()


def test_what_goes_beyond_a_limit_is_refused_with_field_value_and_what_is_allowed(enforce: Enforce) -> None:
    create = enforce(*VALUES)
    for kind, spec, says in BEYOND:
        answer = create(job(kind, spec))
        for part in says:
            assert part in answer, (kind, spec)
    for kind, spec in WITHIN:
        assert create(job(kind, spec)) == "", (kind, spec)


def test_as_the_chart_comes_only_service_accounts_are_limited_and_no_job_may_have_one(
    enforce: Enforce, other_namespace: str
) -> None:
    create = enforce()
    answer = create(job("DPOJob", {"pod": {"serviceAccountName": "default"}}))
    assert "spec.pod.serviceAccountName is default, but jobs here may have only: none" in answer
    for kind, spec, _ in BEYOND[1:]:
        assert create(job(kind, spec)) == "", (kind, spec)
    elsewhere = job("DPOJob", {"pod": {"serviceAccountName": "default"}})
    assert create(elsewhere, other_namespace) == ""


def test_a_job_of_before_can_be_cancelled_though_a_limit_forbids_it_now(
    enforce: Enforce, control_plane: ControlPlane, namespace: str
) -> None:
    of_before = job("DPOJob", {"numNodes": 5, "runPolicy": {"suspend": True}})
    control_plane.apply({**of_before, "metadata": {"name": "job", "namespace": namespace}})
    enforce("limits.maxNumNodes=4")
    patch = json.dumps({"spec": {"runPolicy": {"cancel": True}}})
    control_plane.kubectl("patch", "dpojob", "job", f"--namespace={namespace}", "--type=merge", f"--patch={patch}")


def test_gpus_are_counted_by_the_names_that_count_as_gpus(render_chart: Callable[..., list[Obj]]) -> None:
    [policy] = [obj for obj in render_chart("trl") if obj["kind"] == "ValidatingAdmissionPolicy"]
    [gpus] = [each["expression"] for each in policy["spec"]["variables"] if each["name"] == "gpus"]
    assert f"k.matches('{for_cel(GPU)}')" in gpus
