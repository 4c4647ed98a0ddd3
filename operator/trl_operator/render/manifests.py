"""The objects of an attempt but for its workload: pod template, ConfigMap, NetworkPolicy and claim."""

import json
from dataclasses import dataclass, replace
from typing import Any

from trl_contract.cluster import BackendName
from trl_contract.jobfile import AttemptFile, JobFile
from trl_contract.pod import Pod
from trl_operator.api.defaults import as_begun, with_defaults
from trl_operator.api.job import Job
from trl_operator.constants import (
    LABEL_ATTEMPT,
    LABEL_JOB_KIND,
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_QUEUE,
    LABEL_QUEUE_PRIORITY,
)
from trl_operator.jobdefaults import JobDefaults, offered
from trl_operator.render.environment import env_from, environment
from trl_operator.render.placement import annotations, placement
from trl_operator.render.volumes import mounts
from trl_operator.settings import USER, PodSecurity

MASTER_PORT = "29500"
"""Of torchrun on the first node."""
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""What Pod Security `restricted` asks for, and more."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Installation:
    """What the installation adds to every job."""

    trainer_image: str
    receiver_url: str
    ca_certificate: str
    """PEM of the authority behind the receiver's certificate."""
    backend: BackendName = "pytorchjob"
    """Runs jobs whose spec names none."""
    security: PodSecurity = USER
    """Who the processes of jobs' pods are."""
    copied_labels: tuple[str, ...] = ()
    """Labels of jobs that all their children get."""
    copied_annotations: tuple[str, ...] = ()
    """The same of annotations."""
    job_defaults: tuple[JobDefaults, ...] = ()
    """What jobs have where their specs say nothing."""

    def of(self, job: Job, obj: Manifest) -> Job:
        """Return a job, stored as `obj`, with what the installation says of it and its children; raises ValidationError
        if it cannot have its jobDefaults."""
        metadata, status = obj["metadata"], obj.get("status", {})
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        job = replace(
            job,
            security=self.security,
            copied_labels={name: labels[name] for name in self.copied_labels if name in labels},
            copied_annotations={name: annotations[name] for name in self.copied_annotations if name in annotations},
            offered=offered(self.job_defaults, job.namespace, job.info.kind, labels),
        )
        begun = "attempt" in status or "completionTime" in status
        return as_begun(job, status) if begun else with_defaults(job, job.offered)


def labels(job: Job) -> dict[str, str]:
    """Return the labels of everything that belongs to a job."""
    return {
        **job.copied_labels,
        "app.kubernetes.io/managed-by": "trl-operator",
        LABEL_JOB_UID: job.uid,
        LABEL_JOB_NAME: job.name,
        LABEL_JOB_KIND: job.info.kind,
    }


def claim(job: Job) -> Manifest:
    """Return the claim that the job asks for; a retained one belongs to nobody, so that it outlives the job."""
    storage = job.cluster.storage
    assert storage.size is not None, "a job with claimName has its claim already"
    spec: Manifest = {
        "accessModes": storage.access_modes or ["ReadWriteOnce"],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    metadata = metadata_of(job, job.storage_claim)
    if storage.retain is not False:
        del metadata["ownerReferences"]
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def network_policy(job: Job, attempt: int) -> Manifest:
    """Return the policy that lets only pods of the same job reach the job's pods."""
    selector = {"matchLabels": {LABEL_JOB_UID: job.uid}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": child_metadata(job, attempt),
        "spec": {
            "podSelector": selector,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": selector}]}],
        },
    }


def job_file(job: Job) -> JobFile:
    """Return what the trainer of any attempt is told."""
    _, paths = mounts(job, 0)
    policy = job.cluster.run_policy
    return JobFile(
        contract_version=2,
        kind=job.info.kind,
        namespace=job.namespace,
        name=job.name,
        uid=job.uid,
        num_nodes=job.cluster.num_nodes,
        num_proc_per_node=job.cluster.processes_per_node,
        has_gpus=job.cluster.gpus_per_node > 0,
        stall_timeout_seconds=policy.stall_timeout_seconds,
        termination_grace_period_seconds=policy.termination_grace_period_seconds,
        paths=paths,
        origins=dict(job.origins) or None,
        spec=job.training,
    )


def config_map(job: Job, attempt: AttemptFile, installation: Installation) -> Manifest:
    """Return the attempt's ConfigMap: what changes from attempt to attempt. The rest is in the run's."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(job, attempt.attempt),
        "data": {
            "attempt.json": json.dumps(attempt.to_wire()),
            "ca.crt": installation.ca_certificate,
        },
    }


def child_metadata(job: Job, attempt: int) -> Manifest:
    """Return the metadata of an attempt's ConfigMap and NetworkPolicy."""
    return metadata_of(job, job.child_name(attempt), attempt)


def workload_metadata(job: Job, attempt: int) -> Manifest:
    """Return the metadata of an attempt's workload; if it has a queue, it is to be created suspended, for Kueue."""
    found = child_metadata(job, attempt)
    queue = {LABEL_QUEUE: job.queue_name, LABEL_QUEUE_PRIORITY: job.queue_priority}
    found["labels"] |= {label: value for label, value in queue.items() if value}
    return found


def metadata_of(job: Job, name: str, attempt: int | None = None) -> Manifest:
    """Return the metadata of an object that the job owns."""
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": labels(job) | ({LABEL_ATTEMPT: str(attempt)} if attempt is not None else {}),
        **({"annotations": dict(job.copied_annotations)} if job.copied_annotations else {}),
        "ownerReferences": [job.owner_reference],
    }


def pod_template(
    job: Job, attempt: int, installation: Installation, container: str, launch: list[Manifest]
) -> Manifest:
    """Return the template of an attempt's pods; `launch` are the env entries that tell torchrun of the other nodes."""
    cluster, pod = job.cluster, job.cluster.pod or Pod()
    found, _ = mounts(job, attempt)
    optional: Manifest = {
        "imagePullSecrets": [secret.to_wire() for secret in cluster.image_pull_secrets or []],
        "serviceAccountName": pod.service_account_name,
        "dnsConfig": pod.dns_config.to_wire() if pod.dns_config else None,
        "hostAliases": [alias.to_wire() for alias in pod.host_aliases or []],
    }
    return {
        "metadata": {
            "labels": (pod.labels or {}) | labels(job) | {LABEL_ATTEMPT: str(attempt)},
            "annotations": annotations(job) | _topology(job),
        },
        "spec": {
            "terminationGracePeriodSeconds": cluster.run_policy.termination_grace_period_seconds,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(job),
            "containers": [{"name": container, **_container(job, installation, launch, found.mounts)}],
            "volumes": found.volumes,
            **placement(job),
            **{name: value for name, value in optional.items() if value},
        },
    }


def _topology(job: Job) -> dict[str, str]:
    """Return the annotations that tell Kueue how close to each other the pods are to be."""
    topology = job.cluster.queue.topology if job.cluster.queue else None
    wanted = topology.to_wire() if topology else {}
    return {f"kueue.x-k8s.io/podset-{how}-topology": "true" if v is True else v for how, v in wanted.items()}


def pod_security(job: Job) -> Manifest:
    """Return the securityContext of a pod with the job's files: the installation's user, and never root."""
    found = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **job.security.to_wire()}
    return found | ({"fsGroupChangePolicy": "OnRootMismatch"} if job.security.fs_group is not None else {})


def _container(job: Job, installation: Installation, launch: list[Manifest], volume_mounts: list[Manifest]) -> Manifest:
    return {
        "image": job.cluster.image or installation.trainer_image,
        "imagePullPolicy": "IfNotPresent",
        "env": [*launch, *environment(job, installation.receiver_url)],
        **({"envFrom": sources} if (sources := env_from(job)) else {}),
        "resources": job.cluster.resources.to_wire(),
        "volumeMounts": volume_mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
