"""The model that the policy is compared with."""

from typing import Any

from transformers import AutoModelForCausalLM

from trl_trainer.distributed.world import Run
from trl_trainer.models import arguments, source


def explicit_reference(run: Run) -> Any:
    """Return DPO's reference model where TRL would not load it as we want it, else None.

    mode explicit: another model. mode auto without an adapter: the base model in the precision of the arithmetic;
    TRL would copy the policy's fp32.
    """
    job = run.job
    given = job.spec.explicit_reference
    if given is not None:
        where = source.explicit_reference(job, given)
        kwargs = {**arguments.model_init(job, frozen=True), "revision": given.revision}
    elif job.spec.reference == "base":
        where, kwargs = source.path(job), arguments.model_init(job, frozen=True)
    else:
        return None
    return AutoModelForCausalLM.from_pretrained(where, **kwargs)
