"""Names that more than one module needs."""

from typing import Final

GROUP: Final = "trl-operator.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
LABEL_JOB_NAME: Final = f"{GROUP}/job-name"
LABEL_JOB_KIND: Final = f"{GROUP}/job-kind"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"

MANAGER_STATUS: Final = "trl-operator-status"
MANAGER_PROGRESS: Final = "trl-operator-progress"
"""Field manager of progress, rewards, checkpoints, evaluation and resumedFromStep."""

GPU_PATTERN: Final = r"^(nvidia\.com/gpu|amd\.com/gpu|nvidia\.com/mig-[a-z0-9.]+)$"
"""Resource names that count as GPUs: those that PyTorch calls cuda, AMD's (ROCm) included."""
MAX_PROCESSES_PER_NODE: Final = 64
MAX_CPU_PROCESSES_PER_NODE: Final = 8
MAX_INLINE_BYTES: Final = 128 * 1024
MAX_CONFIG_MAP_BYTES: Final = 960 * 1024
"""What a run's ConfigMap may hold of the spec; the API server takes 1 MiB with paths and resolved defaults."""
