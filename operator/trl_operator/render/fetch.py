"""How somebody gets the files that a job has left in its claim."""

import json
from shlex import join, quote
from typing import Any

from trl_operator.api.job import Job
from trl_operator.render.manifests import CONTAINER_SECURITY, pod_security

MAX_COMMAND = 2048
POD_SECONDS = 86400
"""A pod that nobody has deleted, since its shell was killed, ends after so long."""


def fetch_command(job: Job, image: str, kind: str, path: str) -> str | None:
    """Return the shell command that copies the folder `path` of the job's claim to `./<name>-<kind>`; None if it would
    be too long for a status.

    The job's own pods have ended, and nobody can be let into them any more: it starts one that mounts the claim
    read-only, in the image that the nodes have, copies by kubectl, and deletes it however that went. Whatever a trainer
    has said of the path is quoted.
    """
    pod = f"{job.name}-files"
    container = {
        "name": pod,
        "image": image,
        "command": ["sleep", str(POD_SECONDS)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "claim", "mountPath": "/claim", "readOnly": True}],
    }
    spec: dict[str, Any] = {
        "activeDeadlineSeconds": POD_SECONDS,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": pod_security(job),
        "containers": [container],
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": job.storage_claim}}],
    }
    # A volume may be tied to a node that only such pods may use.
    if job.cluster.tolerations:
        spec["tolerations"] = [toleration.to_wire() for toleration in job.cluster.tolerations]
    if job.cluster.image_pull_secrets:
        spec["imagePullSecrets"] = [secret.to_wire() for secret in job.cluster.image_pull_secrets]
    overrides = json.dumps({"spec": spec}, separators=(",", ":"))

    def kubectl(*arguments: str) -> str:
        return join(["kubectl", "--namespace", job.namespace, *arguments])

    lines = [
        "set -e",
        kubectl("run", pod, f"--image={image}", "--restart=Never", f"--overrides={overrides}"),
        f"trap {quote(kubectl('delete', 'pod', pod))} EXIT",
        kubectl("wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=10m"),
        kubectl("cp", "--retries=10", f"{pod}:/claim/{path}", f"{job.name}-{kind}"),
    ]
    command = "({})".format("\n".join(lines))
    return command if len(command) <= MAX_COMMAND else None
