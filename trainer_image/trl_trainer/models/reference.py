"""The model that the policy is compared with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, TrainingArguments
from trl import DPOConfig
from trl.trainer import grpo_trainer

from trl_trainer.distributed import loading, precision, sharding
from trl_trainer.distributed.world import Run
from trl_trainer.launch.network import with_token
from trl_trainer.models import arguments, base, source, vocabulary


def explicit_reference(run: Run, args: DPOConfig) -> PreTrainedModel | None:
    """Return DPO's reference model where TRL would not load it as we want it, else None.

    mode explicit: another model. Without an adapter: the base model in the precision of the arithmetic; TRL would copy
    the policy's fp32. With several processes it is sharded by block: TRL would gather it whole for each forward pass,
    and leaves alone what is sharded. Of mode precompute it is let go before training.
    """
    job = run.job
    given = job.spec.explicit_reference
    if given is not None:
        with with_token(job.spec, given.hub):
            return frozen(run, args, source.explicit_reference(job, given), given.revision)
    if job.spec.reference in ("base", "precompute"):
        return frozen(run, args, source.path(job), job.spec.model.revision)
    return None


def frozen(run: Run, args: TrainingArguments, where: str, revision: str | None) -> PreTrainedModel:
    """Return a model that is only asked, in the precision of the arithmetic, and sharded as the policy of a trainer
    with `args` is."""
    kwargs = {**arguments.model_init(run.job, frozen=True), "revision": revision}
    wanted = vocabulary.rows(run.job) if where == source.path(run.job) else 0

    def make() -> PreTrainedModel:
        made = base.from_files(where, kwargs, convert_later=run.world > 1)
        vocabulary.grow(made, wanted)
        return made

    if run.world == 1:
        return make()
    model = loading.load(run, make)
    policy = precision.policy(run.job.spec.training.precision)
    loading.shard_frozen(run, model, policy, sharding.mesh(args, run))
    return model


@contextmanager
def in_grpo(run: Run, args: TrainingArguments) -> Iterator[None]:
    """Let GRPOTrainer compare with our reference (`frozen`).

    It takes none, but loads one when it is made: whole in every process, and in the policy's fp32. The one place that
    replaces a function of TRL's.
    """
    original: Any = grpo_trainer.create_model_from_path
    has_policy = base.is_ours(run)

    def create(where: str, *given: Any, **kwargs: Any) -> Any:
        nonlocal has_policy
        if has_policy:
            return frozen(run, args, source.path(run.job), run.job.spec.model.revision)
        # The policy, where TRL loads it, comes first.
        has_policy = True
        return original(where, *given, **kwargs)

    grpo_trainer.create_model_from_path = create
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = original
