"""What ServiceAccounts may do, by the chart, and what they did, by the audit log."""

from typing import Any

from devcluster.controlplane import ControlPlane

Right = tuple[str, str, str]
"""API group, resource with subresource, verb."""


def own_roles(objects: list[dict[str, Any]], account: str) -> list[dict[str, Any]]:
    """The roles that are bound to this ServiceAccount."""
    bindings = [obj for obj in objects if obj["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    bound = {
        (binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for binding in bindings
        if [subject["name"] for subject in binding["subjects"]] == [account]
    }
    return [obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) in bound]


def granted(objects: list[dict[str, Any]], account: str) -> set[Right]:
    """Every right of a ServiceAccount, without those that the API server checks within another request."""
    roles = own_roles(objects, account)
    found = set()
    for rule in (rule for role in roles for rule in role["rules"]):
        assert "*" not in str(rule), rule
        for group in rule["apiGroups"]:
            found |= {(group, resource, verb) for resource in rule["resources"] for verb in rule["verbs"]}
    # An ownerReference with blockOwnerDeletion takes update of finalizers.
    return {right for right in found if not right[1].endswith("/finalizers")}


def used(plane: ControlPlane, user: str) -> set[Right]:
    found = set()
    for entry in plane.audit(user):
        if reference := entry.get("objectRef"):
            resource = "/".join(filter(None, [reference["resource"], reference.get("subresource")]))
            found.add((reference.get("apiGroup", ""), resource, entry["verb"]))
    return found
