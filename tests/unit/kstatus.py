"""What kstatus says of a custom resource: Compute and checkGenericProperties of sigs.k8s.io/cli-utils, line by line
(pkg/kstatus/status/status.go and generic.go), without the rules for built-in kinds and for the condition Ready."""

from typing import Any


def compute(obj: dict[str, Any]) -> str:
    """Terminating, InProgress, Failed or Current."""
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = obj.get("status", {})
    if "observedGeneration" in status and status["observedGeneration"] != obj["metadata"]["generation"]:
        return "InProgress"
    for condition in status.get("conditions", ()):
        assert condition["type"] != "Ready", "kstatus has a rule for it, which is not here"
        if condition["status"] == "True" and condition["type"] in ("Reconciling", "Stalled"):
            return {"Reconciling": "InProgress", "Stalled": "Failed"}[condition["type"]]
    return "Current"
