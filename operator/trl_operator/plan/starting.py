"""Why an attempt does not run yet."""

from collections.abc import Iterable

from trl_operator.plan.observation import Pod

_IMAGE = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}

_REFUSALS = (("exceeded quota", "QuotaExceeded"), ("violates PodSecurity", "PodSecurityDenied"))
_REFUSED = "CreateRefused"
REFUSAL_REASONS = frozenset({_REFUSED, *(reason for _, reason in _REFUSALS)})
WORKLOAD_SUSPENDED = "WorkloadSuspended"
WAITING_REASONS = REFUSAL_REASONS | {
    WORKLOAD_SUSPENDED,
    "Unschedulable",
    "ImagePullFailed",
    "SecretNotFound",
    "SecretKeyNotFound",
}
"""Reasons of Running=False that stand until somebody does something."""


def refusal(words: str) -> str:
    """Return the reason that goes with what the API server said when it did not let something be created."""
    return next((reason for known, reason in _REFUSALS if known in words), _REFUSED)


def waiting_reason(pods: Iterable[Pod], denials: Iterable[str] = ()) -> tuple[str, str] | None:
    """Return why the pods of an attempt do not run, by reason and message; None if they are just starting.

    `denials` are the messages of events that tell why a pod could not be created, newest first.
    """
    if newest := next(iter(denials), ""):
        return refusal(newest), newest
    pods = sorted(pods, key=lambda pod: pod.index)
    for pod in pods:
        if pod.waiting_reason in _IMAGE:
            return "ImagePullFailed", f"pod {pod.name}: {pod.waiting_message or pod.waiting_reason}"
        # The kubelet says: secret "x" not found, and: couldn't find key k in Secret ns/x.
        if pod.waiting_reason == "CreateContainerConfigError" and "secret" in pod.waiting_message.lower():
            missing = "SecretKeyNotFound" if "key" in pod.waiting_message else "SecretNotFound"
            return missing, f"pod {pod.name}: {pod.waiting_message}"
    for pod in pods:
        if pod.unschedulable:
            return "Unschedulable", f"pod {pod.name}: {pod.unschedulable}"
    return None
