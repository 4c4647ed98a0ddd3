"""Names that more than one module needs."""

from typing import Final

from trl_contract.jobs import API_VERSION as API_VERSION

GROUP, VERSION = API_VERSION.split("/")

LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
LABEL_JOB_NAME: Final = f"{GROUP}/job-name"
LABEL_JOB_KIND: Final = f"{GROUP}/job-kind"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"

LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's, of a workload; on a job it means the same as spec.queue.name."""
LABEL_QUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"
ANNOTATION_BOOST: Final = "kueue.x-k8s.io/priority-boost"
"""Kueue's annotation of a Workload: a number that is added to its priority, where the gate PriorityBoost is on."""

MANAGER_OBJECTS: Final = "trl-operator"
"""Field manager of what the operator creates; what webhooks add to it meanwhile counts as its own too."""
MANAGER_STATUS: Final = "trl-operator-status"
MANAGER_PROGRESS: Final = "trl-operator-progress"
"""Field manager of progress, rewards, checkpoints, evaluation, usage and resumedFromStep."""
MANAGER_BOOST: Final = "trl-operator-boost"
"""Field manager of the annotation of Workloads."""
