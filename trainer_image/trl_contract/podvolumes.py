"""What a job's pods mount beside models, rows and storage. Names are those of Kubernetes' volumes and mounts."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trl_contract.base import Model, Name, RelativePath, Rule
from trl_contract.quantity import Quantity

_PART = r"([^/\x00-\x1f.:][^/\x00-\x1f:]*|\.[^/\x00-\x1f.:][^/\x00-\x1f:]*)"
MountPath = Annotated[str, Field(min_length=2, max_length=512, pattern=rf"^(/{_PART})+$")]
"""An absolute path: no `..`, no empty part, no colon, no control character."""
TAKEN = (
    r"^/((home|opt|var)|(bin|dev|etc|home/trainer|lib|lib32|lib64|libx32|mnt|opt/trl|opt/venv|proc|root|run|sbin|sys"
    r"|tmp|usr|var/run)(/.*)?)$"
)
"""What the operator mounts itself or the trainer's image needs, and what is above or below that."""
VolumeName = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
_SOURCES = ("persistentVolumeClaim", "configMap", "secret", "emptyDir", "csi")


class ClaimSource(Model):
    claim_name: Name
    """A PersistentVolumeClaim in the job's namespace."""


class ConfigMapSource(Model):
    name: Name
    """A ConfigMap in the job's namespace; each of its keys is a file."""


class SecretSource(Model):
    secret_name: Name
    """A Secret in the job's namespace; each of its keys is a file."""


class EmptyDirSource(Model):
    medium: Literal["Memory"] | None = None
    """Memory: it counts against the memory limit; the node's disk if unset."""
    size_limit: Quantity | None = None
    """What it may hold; a pod that writes more is evicted."""


class LocalObjectName(Model):
    name: Name
    """Name of a Secret in the job's namespace."""


class CsiSource(Model):
    driver: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """A driver that the cluster has, like secrets-store.csi.k8s.io."""
    fs_type: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """File system; the driver's default if unset."""
    volume_attributes: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)] | None = None
    """What the driver is told."""
    node_publish_secret_ref: LocalObjectName | None = None
    """A Secret that the driver gets."""


class PodVolume(Model):
    """A volume and where the trainer finds it: exactly one source."""

    rules: ClassVar = (
        Rule(
            f"[{', '.join(f'has(self.{name})' for name in _SOURCES)}].filter(x, x).size() == 1",
            f"give exactly one of {', '.join(_SOURCES)}",
            lambda self: (
                [self.persistent_volume_claim, self.config_map, self.secret, self.empty_dir, self.csi].count(None) == 4
            ),
        ),
        Rule(
            f"!self.mountPath.matches('{TAKEN}')",
            "the operator mounts volumes there, or the image has files there: choose another path, like /data",
            lambda self: re.fullmatch(TAKEN, self.mount_path) is None,
            "mountPath",
        ),
        Rule(
            "!has(self.subPath) || has(self.persistentVolumeClaim)",
            "subPath goes with persistentVolumeClaim: remove it",
            lambda self: self.sub_path is None or self.persistent_volume_claim is not None,
            "subPath",
        ),
    )

    name: VolumeName
    """Its name, each another one."""
    mount_path: MountPath
    """Where it is in the trainer's container, like /data; not where the operator mounts volumes itself or the image
    has its files: /mnt, /tmp, /dev, /home/trainer, /etc, /run, /usr, /lib, /bin."""
    read_only: bool | None = None
    """Nothing is written there; false if unset."""
    sub_path: RelativePath | None = None
    """Folder in the claim; the whole of it if unset."""
    persistent_volume_claim: ClaimSource | None = None
    """A claim; one that the pods write to needs ReadWriteMany if there are several nodes."""
    config_map: ConfigMapSource | None = None
    """A ConfigMap."""
    secret: SecretSource | None = None
    """A Secret."""
    empty_dir: EmptyDirSource | None = None
    """A folder that each pod has for itself, and that ends with it."""
    csi: CsiSource | None = None
    """A volume that a CSI driver makes for each pod."""
