"""The model that the policy is compared with."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from trl_trainer.distributed.world import Run
from trl_trainer.models import arguments
from trl_trainer.models.source import check_folder, path


def explicit_reference(run: Run) -> Any:
    """Return DPO's reference model where TRL would not load it as we want it, else None.

    mode explicit: another model. mode auto without an adapter: the base model in the precision of the arithmetic;
    TRL would copy the policy's fp32.
    """
    job = run.job
    reference = job.spec.dpo.reference_model
    if reference.mode == "explicit":
        where = job.paths.reference_model or reference.source.hub.repo
        if Path(where).is_absolute():
            check_folder(where, "dpo.referenceModel.source")
        revision = reference.source.revision
        kwargs = {**arguments.model_init(job, frozen=True), "revision": revision}
    elif reference.mode == "auto" and job.spec.peft.method == "none":
        where, kwargs = path(job), arguments.model_init(job, frozen=True)
    else:
        return None
    return AutoModelForCausalLM.from_pretrained(where, **kwargs)
