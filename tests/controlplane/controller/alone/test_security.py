"""A cluster that gives each namespace a range of users, as OpenShift's restricted-v2 does."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

Obj = dict[str, Any]

FIRST, LAST = 1000680000, 1000689999
API = "admissionregistration.k8s.io/v1"


def restricted_v2(namespace: str) -> list[Obj]:
    """Policies that give the namespace's pods a user and a group of its range if they name none, and refuse others."""
    where = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    context = "object.spec.securityContext"
    name = f"restricted-v2-{namespace}"
    given = (
        f"!has({context}) || !has({context}.runAsUser) ? Object{{spec: Object.spec{{securityContext:"
        f" Object.spec.securityContext{{runAsUser: {FIRST + 123}, fsGroup: {FIRST}}}}}}} : Object{{}}"
    )
    ranges = f"{context}.runAsUser >= {FIRST} && {context}.runAsUser <= {LAST} && {context}.fsGroup == {FIRST}"
    policies: dict[str, Obj] = {
        "Mutating": {
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": given}}],
        },
        "Validating": {"validations": [{"expression": ranges, "message": f"must be in the ranges: [{FIRST}, {LAST}]"}]},
    }
    found = []
    for kind, spec in policies.items():
        whole = {**spec, "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [pods]}}
        deny = {"validationActions": ["Deny"]} if kind == "Validating" else {}
        binding = {"policyName": name, "matchResources": where, **deny}
        for suffix, body in (("", whole), ("Binding", binding)):
            made = {"apiVersion": API, "kind": f"{kind}AdmissionPolicy{suffix}", "metadata": {"name": name}}
            found.append({**made, "spec": body})
    return found


@pytest.fixture
def ranges(control_plane: ControlPlane, namespace: str) -> Iterator[None]:
    policies = restricted_v2(namespace)
    control_plane.apply(*policies)
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fixed", "namespace": namespace},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "x", "image": "x",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }  # fmt: skip

    def is_refused() -> bool:
        try:
            control_plane.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(pod))
        except DevClusterError as error:
            return "must be in the ranges" in str(error)
        return False

    wait_for("a fixed user is refused", is_refused, 30, 0.2)
    yield
    for policy in policies:
        control_plane.kubectl("delete", policy["kind"], policy["metadata"]["name"], "--wait=false")


def test_pods_take_the_clusters_user_or_one_of_its_range_and_children_get_the_labels_that_are_copied(
    ranges: None,
    make_operator: Callable[..., Any],
    render_chart: Callable[..., list[Obj]],
    namespace: str,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Obj],
) -> None:
    def setting(*values: str) -> str:
        found = render_chart(namespace, *(f"podSecurityContext.{value}" for value in values))
        [deployment] = [
            obj for obj in found if (obj["kind"], obj["metadata"]["name"]) == ("Deployment", "trl-operator")
        ]
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        return str(next(v["value"] for v in container["env"] if v["name"] == "TRL_OPERATOR_POD_SECURITY"))

    left = setting("runAsUser=none", "runAsGroup=none", "fsGroup=none")
    named = setting(f"runAsUser={LAST - 7}", "runAsGroup=0", f"fsGroup={FIRST}")
    for name, said, user in (("left", left, FIRST + 123), ("named", named, LAST - 7)):
        operator = make_operator(name, POD_SECURITY=said, COPIED_LABELS="a/b,no", COPIED_ANNOTATIONS="c")
        operator.start()
        labels, annotations = {"a/b": "x", "other": "y"}, {"c": "z", "other": "y"}
        jobs.apply(dpo(name) | {"metadata": {"name": name, "labels": labels, "annotations": annotations}})
        [pod] = node.wait_for_pods(1, f"{name}-dpo-0")
        context = pod["spec"]["securityContext"]
        assert (context["runAsUser"], context["fsGroup"], context["runAsNonRoot"]) == (user, FIRST, True)
        made = ("pytorchjob", f"{name}-dpo-0"), ("configmap", f"{name}-dpo"), ("configmap", f"{name}-dpo-0")
        more = ("networkpolicy", f"{name}-dpo-0"), ("persistentvolumeclaim", f"{name}-dpo")
        for child in (pod, *(jobs.get(*each) for each in (*made, *more))):
            metadata = child["metadata"]
            assert (metadata["labels"]["a/b"], metadata["annotations"]["c"]) == ("x", "z"), child["kind"]
            assert "other" not in metadata["labels"] | metadata["annotations"]
        assert operator.stop() == 0
