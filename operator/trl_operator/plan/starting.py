"""Why an attempt does not run yet."""

import re
from collections.abc import Iterable, Sequence

from trl_contract.cluster import ClusterSpec
from trl_operator.plan.observation import Pod
from trl_operator.plan.view import View

_REFUSALS = (
    ("exceeded quota", "QuotaExceeded"),
    ("violates PodSecurity", "PodSecurityDenied"),
    ("failed calling webhook", "WebhookUnavailable"),
    ("denied the request", "AdmissionDenied"),  # admission webhook "x" denied the request: ...
    ("denied request", "AdmissionDenied"),  # ValidatingAdmissionPolicy 'x' with binding 'y' denied request: ...
    ("no PriorityClass with name", "PriorityClassNotFound"),
    (" usage per ", "LimitRangeExceeded"),  # maximum cpu usage per Container is 1, but limit is 2
)
_REFUSED = "CreateRefused"
REFUSAL_REASONS = frozenset({_REFUSED, *(reason for _, reason in _REFUSALS)})

_IMAGE = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_PULL_SECRETS = "FailedToRetrieveImagePullSecret"
_WARNINGS = {
    "FailedMount": "VolumeMountFailed",
    "FailedAttachVolume": "VolumeMountFailed",
    "FailedCreatePodSandBox": "PodSandboxFailed",
}
_NOT_FOUND = re.compile(r'\b(secrets?|configmap) "[^"]*" not found')
"""How the kubelet says in a FailedMount which object a volume is made of and is not there."""
POD_WARNINGS = frozenset({_PULL_SECRETS, *_WARNINGS})
"""Reasons of the events about a pod that tell what its status does not."""
CLAIM_WARNINGS = frozenset({"ProvisioningFailed", "FailedBinding"})
"""Reasons of the events about a claim that tell why it gets no volume."""

WORKLOAD_SUSPENDED = "WorkloadSuspended"
WAITING_REASONS = (
    REFUSAL_REASONS
    | _CONTAINER
    | frozenset(_WARNINGS.values())
    | {
        WORKLOAD_SUSPENDED,
        "Unschedulable",
        "VolumeNotBound",
        "PersistentVolumeClaimNotFound",
        "ConfigMapNotFound",
        "ImagePullFailed",
        "SecretNotFound",
        "SecretKeyNotFound",
    }
)
"""Reasons of Running=False that stand until somebody does something."""

Why = tuple[str, str]
"""Reason and message."""


def refusal(words: str) -> str:
    """Return the reason that goes with what the API server said when it did not let something be created."""
    return next((reason for known, reason in _REFUSALS if known in words), _REFUSED)


def waiting_reason(cluster: ClusterSpec, view: View) -> Why | None:
    """Return why the pods of an attempt do not run; None if they are just starting.

    Of several pods the one with the lowest index is named: a count would be one write for each pod of a gang.
    """
    if newest := next(iter(view.told.denials), ""):
        return refusal(newest), newest
    pods = sorted((pod for pod in view.pods if not pod.started), key=lambda pod: pod.index)
    placed, waiting = [pod for pod in pods if pod.node], [pod for pod in pods if not pod.node]
    told = (_container(pod, view) or _preparation(pod, view) for pod in placed)
    return next((why for why in told if why), None) or _no_node(cluster, waiting, view)


def is_lost(config_maps: Iterable[str], view: View) -> bool:
    """Whether a pod waits for one of these ConfigMaps, which are made before it: somebody has deleted it since."""
    told = [view.told.pods.get(pod.name, ("", ""))[1] for pod in view.pods if not pod.prepared]
    return any(f'configmap "{name}" not found' in words for name in config_maps for words in told)


def _container(pod: Pod, view: View) -> Why | None:
    """What the kubelet says of a container that it cannot start."""
    words = f"pod {pod.name}: {pod.waiting_message or pod.waiting_reason}"
    if pod.waiting_reason in _IMAGE:
        reason, lacks = view.told.pods.get(pod.name, ("", ""))
        return "ImagePullFailed", f"{words}; {lacks}" if reason == _PULL_SECRETS else words
    # The kubelet says: secret "x" not found, and: couldn't find key k in Secret ns/x.
    if pod.waiting_reason == "CreateContainerConfigError" and "secret" in pod.waiting_message.lower():
        return "SecretKeyNotFound" if "key" in pod.waiting_message else "SecretNotFound", words
    return (pod.waiting_reason, words) if pod.waiting_reason in _CONTAINER else None


def _preparation(pod: Pod, view: View) -> Why | None:
    """What is in the way of mounting its volumes or connecting it: events tell, and stay when it has gone by."""
    reason, message = view.told.pods.get(pod.name, ("", ""))
    if pod.prepared or reason not in _WARNINGS:
        return None
    if reason == "FailedMount" and (lacks := _NOT_FOUND.search(message)):
        return "ConfigMapNotFound" if lacks[1] == "configmap" else "SecretNotFound", f"pod {pod.name}: {message}"
    return _WARNINGS[reason], f"pod {pod.name}: {message}"


def _no_node(cluster: ClusterSpec, pods: Sequence[Pod], view: View) -> Why | None:
    """Why no node takes a pod, by its claims and by what the scheduler says."""
    for pod in pods:
        words = _nodes(pod.unschedulable)
        found = [view.told.claims[claim] for _, claim in pod.claims if claim in view.told.claims]
        if found and ("unbound immediate" in words or (not words and any(claim.why for claim in found))):
            claims = "; ".join(f"{claim.what}: {claim.why}" if claim.why else claim.what for claim in found)
            return "VolumeNotBound", f"pod {pod.name} waits for its volume: {claims}"
    refused = [(pod, words) for pod in pods if (words := _nodes(pod.unschedulable))]
    if not refused:
        return None
    pod, words = refused[0]
    if "persistentvolumeclaim " in words:
        return "PersistentVolumeClaimNotFound", f"pod {pod.name}: {words}"
    names = f"pod {pod.name}" + (" and others" if len(refused) > 1 else "")
    needs = " and ".join(_needs(cluster, pod, words))
    return "Unschedulable", f"{names}{f' needs {needs}' if needs else ''}: {words}"


def _nodes(words: str) -> str:
    """Return what the scheduler says of the nodes: its first sentence. Others tell whom a preemption would not help."""
    return words.partition(". ")[0].removesuffix(".")


def _needs(cluster: ClusterSpec, pod: Pod, words: str) -> Iterable[str]:
    """Return what the scheduler found no node for: it says what is short, and not how much was asked; since Kubernetes
    1.36 it does not name the taints either. What jobDefaults may say, or Kueue adds, is read from the pod."""
    resources = (cluster.resources.limits or {}) | (cluster.resources.requests or {})
    yield from (f"{name} {count}" for name, count in resources.items() if f"Insufficient {name}" in words)
    if "node affinity/selector" in words:
        yield from (f"{label}={value} (nodeSelector)" for label, value in pod.node_selector)
        if cluster.pod and cluster.pod.affinity and cluster.pod.affinity.node_affinity:
            yield "what pod.affinity.nodeAffinity asks for"
    # Of "existing pods anti-affinity rules" the scheduler speaks too: those are the rules of others.
    if "match pod anti-affinity rules" in words and cluster.one_pod_per_node:
        yield "a node without a pod of this job (onePodPerNode)"
    if "untolerated taint" in words:
        has = ", ".join(key or "any key" for key in pod.tolerations)
        yield f"a toleration (tolerations: {has or 'none'})"
