"""What a node's container gets of cpu, memory, GPUs and all else that nodes offer."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from trl_contract.base import Model, Rule, for_cel
from trl_contract.quantity import Quantity, amount

GPU = r"^(nvidia\.com/gpu|amd\.com/gpu|nvidia\.com/mig-[a-z0-9.]+)$"
"""Names that count as GPUs: those that PyTorch calls cuda, AMD's (ROCm) included."""
_OTHER_ACCELERATOR = (
    r"^(nvidia\.com/(gpu|mig)[-.].*|amd\.com/gpu.+|gpu\.intel\.com/.*|aws\.amazon\.com/neuron.*|google\.com/tpu"
    r"|habana\.ai/gaudi)$"
)
"""Names of accelerators that the trainer would leave idle, and of shares of GPUs; GPU is looked at first."""
_HUGE = r"^hugepages-[1-9][0-9]*[KMG]i$"
_NATIVE = r"^(cpu|memory|ephemeral-storage)$"
_DEVICE = (
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_KUBERNETES = r"^(requests[.].*|(.*[.])?kubernetes[.]io/.*)$"
"""Names with a domain that Kubernetes takes for no device's."""

ResourceMap = Annotated[dict[str, Quantity], Field(max_length=16)]


def _is(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name) is not None


def _known(name: str) -> bool:
    return _is(_NATIVE, name) or _is(_HUGE, name) or (_is(_DEVICE, name) and not _is(_KUBERNETES, name))


def _of_both(rule: str) -> str:
    """Return the CEL rule that holds if `rule` does of each name `k` in limits and in requests."""
    return f"(!has(self.limits) || self.limits.all(k, {rule})) && (!has(self.requests) || self.requests.all(k, {rule}))"


class Resources(Model):
    """Resources of each node's container. GPUs go into limits; their number is the number of processes per node."""

    rules: ClassVar = (
        Rule(
            _of_both(
                f"k.matches('{for_cel(_NATIVE)}') || k.matches('{for_cel(_HUGE)}')"
                f" || k.matches('{for_cel(_DEVICE)}') && !k.matches('{for_cel(_KUBERNETES)}')"
            ),
            "resources are cpu, memory, ephemeral-storage, hugepages-2Mi and the like, and what devices are called,"
            " with the domain: nvidia.com/gpu, vpc.amazonaws.com/efa, rdma/hca",
            lambda self: all(_known(name) for name, _ in self.named()),
        ),
        Rule(
            _of_both(f"k.matches('{for_cel(GPU)}') || !k.matches('{for_cel(_OTHER_ACCELERATOR)}')"),
            "GPUs are nvidia.com/gpu, nvidia.com/mig-* and amd.com/gpu; the trainer can use no other accelerator",
            lambda self: all(_is(GPU, name) or not _is(_OTHER_ACCELERATOR, name) for name, _ in self.named()),
        ),
        Rule(
            f"!has(self.limits) || self.limits.filter(k, k.matches('{for_cel(GPU)}')).size() <= 1",
            "limits may name one kind of GPU only: split the work into several jobs",
            lambda self: len(self.gpus) <= 1,
        ),
        Rule(
            f"!has(self.limits) || self.limits.all(k, !k.matches('{for_cel(GPU)}')"
            " || string(self.limits[k]).matches('^([1-9]|[1-5][0-9]|6[0-4])$'))",
            "the number of GPUs must be a whole number from 1 to 64",
            lambda self: all(_is("[1-9]|[1-5][0-9]|6[0-4]", str(count)) for count in self.gpus.values()),
        ),
        Rule(
            "!has(self.limits) || self.limits.all(k, !k.contains('/')"
            " || string(self.limits[k]).matches('^[0-9]{1,9}$'))",
            "the number of devices must be a whole number",
            lambda self: all(_is("[0-9]{1,9}", str(n)) for name, n in (self.limits or {}).items() if "/" in name),
        ),
        Rule(
            "!has(self.requests) || self.requests.all(k, !(k.contains('/') || k.startsWith('hugepages-'))"
            " || has(self.limits) && k in self.limits"
            " && quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) == 0)",
            "requests of GPUs, other devices and huge pages must be in limits too, and equal: remove them, and limits"
            " count for both",
            lambda self: all(
                name in (self.limits or {}) and amount(count) == amount((self.limits or {})[name])
                for name, count in (self.requests or {}).items()
                if "/" in name or name.startswith("hugepages-")
            ),
        ),
        Rule(
            "!has(self.limits) || self.limits.all(k, !k.startsWith('hugepages-') || 'memory' in self.limits"
            " || 'cpu' in self.limits || has(self.requests) && ('memory' in self.requests || 'cpu' in self.requests))",
            "huge pages need cpu or memory beside them: name memory in limits",
            lambda self: (
                not any(name.startswith("hugepages-") for name in self.limits or {})
                or any(name in ("cpu", "memory") for name, _ in self.named())
            ),
        ),
        Rule(
            "!has(self.limits) || !has(self.requests) || self.requests.all(k, !(k in self.limits)"
            " || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)",
            "requests must not be above limits",
            lambda self: all(
                amount(count) <= amount((self.limits or {}).get(name, count))
                for name, count in (self.requests or {}).items()
            ),
        ),
    )

    limits: ResourceMap | None = None
    """What a node's container may use at most: cpu, memory, ephemeral-storage, GPUs, and any other device that nodes
    offer, like vpc.amazonaws.com/efa or rdma/hca, and huge pages (hugepages-2Mi)."""
    requests: ResourceMap | None = None
    """What the scheduler sets aside; as limits if unset. GPUs, other devices and huge pages: equal to limits."""

    def named(self) -> Iterator[tuple[str, int | str]]:
        """Yield the names and quantities of limits, then those of requests."""
        yield from (self.limits or {}).items()
        yield from (self.requests or {}).items()

    @property
    def gpus(self) -> dict[str, int | str]:
        """The GPUs in limits, by name."""
        return {name: count for name, count in (self.limits or {}).items() if _is(GPU, name)}
