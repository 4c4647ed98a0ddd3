"""Environment variables of the trainer's container."""

from typing import Any

from trl_contract.acceptance import hubs, secrets
from trl_contract.cluster import EnvVar
from trl_contract.jobfile import JOB_UID
from trl_contract.pod import EnvFrom
from trl_contract.report import CA_BUNDLE, SECRET_VARIABLES
from trl_operator.api.job import Job
from trl_operator.constants import GROUP, VERSION
from trl_operator.render.volumes import ATTEMPT, CA_FOLDER, HOME, TOKEN


def environment(job: Job, receiver_url: str) -> list[dict[str, Any]]:
    """Return the container's env but for the launch: reports, offline mode, secrets by reference, the user's own."""
    literals = {
        "HOME": HOME,
        JOB_UID: job.uid,
        "KUBEFLOW_TRAINER_SERVER_URL": f"{receiver_url}{report_path(job)}",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": f"{ATTEMPT}/ca.crt",
        "KUBEFLOW_TRAINER_SERVER_TOKEN": TOKEN,
    }
    if not hubs(job.training):
        literals["HF_HUB_OFFLINE"] = "1"
    if job.cluster.pod and job.cluster.pod.ca_bundle:
        literals[CA_BUNDLE] = f"{CA_FOLDER}/ca.crt"
    found, users = secrets(job.training), job.cluster.env or []
    secret = [
        *found,
        *(variable.name for variable in users if variable.value_from and variable.value_from.secret_key_ref),
    ]
    secret += [f"{source.prefix}*" for source in _sources(job) if source.secret_ref]
    if secret:
        literals[SECRET_VARIABLES] = " ".join(secret)
    return [
        *({"name": name, "value": value} for name, value in literals.items()),
        *({"name": name, "valueFrom": _secret(ref)} for name, ref in found.items()),
        *(_user(variable) for variable in users),
    ]


def env_from(job: Job) -> list[dict[str, Any]]:
    """Return what the container takes its variables from, beside those that it has by name and that win."""
    return [source.to_wire() for source in _sources(job)]


def report_path(job: Job) -> str:
    """Return the path that the job's pods report to, on the receiver."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{job.namespace}/{job.info.plural}/{job.name}/status"


def _sources(job: Job) -> list[EnvFrom]:
    return (job.cluster.pod.env_from if job.cluster.pod else None) or []


def _secret(ref: Any) -> dict[str, Any]:
    return {"secretKeyRef": {"name": ref.name, "key": ref.key}}


def _user(variable: EnvVar) -> dict[str, Any]:
    if variable.value_from:
        return {"name": variable.name, "valueFrom": variable.value_from.to_wire()}
    # Kubernetes expands $(X) in values; doubled, a dollar sign stands for itself.
    return {"name": variable.name, "value": (variable.value or "").replace("$", "$$")}
