"""How a job trains, whatever its kind: the loop, the adapter, checkpoints, sharding and tracking.

A name that TRL, transformers or peft has keeps that name and its values.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trl_contract.base import RESOLVED, Int32, Model, Name, RelativePath, Rule
from trl_contract.sources import SecretKeyRef, Volume

LrScheduler = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "warmup_stable_decay",
    "polynomial",
    "inverse_sqrt",
]

Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adamw_bnb_8bit", "paged_adamw_8bit"]

BITSANDBYTES_OPTIMIZERS: frozenset[Optimizer] = frozenset({"adamw_bnb_8bit", "paged_adamw_8bit"})
"""They need a GPU, and a job of one process."""

WITHOUT_ADAM: frozenset[Optimizer] = frozenset({"adafactor", "sgd"})
SCHEDULERS_WITH_ARGS: frozenset[LrScheduler] = frozenset({"cosine_with_min_lr", "warmup_stable_decay"})


class LrSchedulerArgs(Model):
    """Arguments of the schedulers that have some, as shares."""

    min_lr_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The learning rate at the end, as a share of learningRate; if unset 0.1 for cosine_with_min_lr, and 0 for
    warmup_stable_decay."""
    decay_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """warmup_stable_decay: the share of all steps that decays, at most what the warm-up leaves; 0.1 if unset."""
    decay_type: Literal["linear", "cosine", "1-sqrt"] | None = None
    """warmup_stable_decay: the form of the decay; cosine if unset."""


class TrainingBase(Model):
    """Hyper-parameters of the loop that all kinds have."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.epochs) && has(self.maxSteps))",
            "give epochs or maxSteps, not both",
            lambda self: self.epochs is None or self.max_steps is None,
        ),
        Rule(
            "!(has(self.warmupSteps) && has(self.warmupRatio))",
            "give warmupSteps or warmupRatio, not both",
            lambda self: self.warmup_steps is None or self.warmup_ratio is None,
        ),
        Rule(
            "!has(self.lrScheduler) || self.lrScheduler != 'constant'"
            " || !(has(self.warmupSteps) && self.warmupSteps > 0)"
            " && !(has(self.warmupRatio) && self.warmupRatio > 0.0)",
            "lrScheduler constant does not warm up: use constant_with_warmup, or remove warmupSteps and warmupRatio",
            lambda self: self.lr_scheduler != "constant" or not (self.warmup_steps or self.warmup_ratio),
        ),
        Rule(
            "!has(self.lrScheduler) || self.lrScheduler != 'polynomial' || !has(self.learningRate)"
            " || self.learningRate > 0.0000001",
            "lrScheduler polynomial ends at learning rate 1e-7: raise learningRate above it, or use linear",
            lambda self: self.lr_scheduler != "polynomial" or self.learning_rate is None or self.learning_rate > 1e-7,
        ),
        Rule(
            "!has(self.lrSchedulerArgs) || !has(self.lrScheduler)"
            f" || self.lrScheduler in {sorted(SCHEDULERS_WITH_ARGS)}",
            "lrSchedulerArgs are for lrScheduler cosine_with_min_lr and warmup_stable_decay: remove them, or use one"
            " of these",
            lambda self: self.lr_scheduler_args is None or self.lr_scheduler in SCHEDULERS_WITH_ARGS,
        ),
        Rule(
            "!has(self.lrSchedulerArgs) || !has(self.lrScheduler) || self.lrScheduler != 'cosine_with_min_lr'"
            " || !(has(self.lrSchedulerArgs.decayRatio) || has(self.lrSchedulerArgs.decayType))",
            "lrSchedulerArgs: decayRatio and decayType are for lrScheduler warmup_stable_decay: remove them",
            lambda self: (
                self.lr_scheduler_args is None
                or self.lr_scheduler != "cosine_with_min_lr"
                or self.lr_scheduler_args.decay_ratio is self.lr_scheduler_args.decay_type is None
            ),
        ),
        Rule(
            "!(has(self.adamBeta1) || has(self.adamBeta2) || has(self.adamEpsilon))"
            f" || !has(self.optimizer) || !(self.optimizer in {sorted(WITHOUT_ADAM)})",
            "adamBeta1, adamBeta2 and adamEpsilon have no meaning for optimizer adafactor and sgd: remove them",
            lambda self: (
                self.adam_beta1 is self.adam_beta2 is self.adam_epsilon is None or self.optimizer not in WITHOUT_ADAM
            ),
        ),
    )

    epochs: Annotated[float, Field(gt=0, le=10000)] | None = None
    """Passes over the training rows. Default: 1, unless maxSteps is given."""
    max_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Optimizer steps to train, instead of epochs."""
    per_device_batch_size: Annotated[Int32, Field(ge=1, le=4096), RESOLVED] = 4
    """Rows (dpo, reward: pairs; grpo: completions) per process and micro-step."""
    gradient_accumulation_steps: Annotated[Int32, Field(ge=1, le=4096), RESOLVED] = 4
    """Micro-steps per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: with lora and qlora 2e-4 (sft), 1e-4 (reward) and 1e-5 (dpo, grpo); with peft.method
    none 2e-5, 1e-5 and 1e-6."""
    lr_scheduler: Annotated[LrScheduler, RESOLVED] = "cosine"
    """Shape of the learning rate over the run."""
    lr_scheduler_args: LrSchedulerArgs | None = None
    """Arguments of cosine_with_min_lr and warmup_stable_decay."""
    warmup_steps: Annotated[Int32, Field(ge=0)] | None = None
    """Steps of warm-up, but never all of them."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps that warm up, but never all of them. Default: 0.1, unless warmupSteps is given; 0 for
    lrScheduler constant, which has no warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=1), RESOLVED] = 0.01
    """Weight decay of the optimizer."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000), RESOLVED] = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Annotated[Optimizer, RESOLVED] = "adamw_torch_fused"
    """Optimizer, by transformers' name. The 8-bit ones need a GPU, and a job of one process."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Adam's decay of the mean of the gradients; 0.9 if unset."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Adam's decay of the mean of their squares; 0.999 if unset."""
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] | None = None
    """What keeps Adam from dividing by 0; 1e-8 if unset."""
    precision: Literal["bf16", "fp16", "fp32"] | None = None
    """Arithmetic of the forward pass. Default: bf16 with GPUs, fp32 without. fp16 is for GPUs that have no bf16; steps
    whose gradients it cannot hold are left out until their scale is found."""
    seed: Annotated[Int32, Field(ge=0)] = 42
    """Seed of everything random."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass. Default: with GPUs, on where the estimate of the longest rows does
    not fit without, with 15 % of the GPU to spare, and after an attempt that ran out of its memory; off without GPUs.
    status.effective says what was decided, once for all attempts."""
    padding_free: Literal["auto", "never"] | None = None
    """auto (if unset): compute without padding, and a pair's common prompt once, where the model is known to give the
    same losses so; never: as TRL does. Which it is, and why not, is told before training."""
    logging_steps: Annotated[Int32, Field(ge=1), RESOLVED] = 10
    """Steps between two log entries."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    extra_args: Annotated[dict[str, Annotated[str, Field(max_length=64)]], Field(max_length=8)] | None = None
    """More of the kind's TRL config, by TRL's names, each value as text. All kinds: torch_empty_cache_steps; sft:
    neftune_noise_alpha; grpo: min_p, off_policy_mask_threshold, use_bias_correction_kl."""

    extra_arg_types: ClassVar[dict[str, Any]] = {"torch_empty_cache_steps": Annotated[int, Field(ge=1)]}
    """What extra_args may name, and the type of its value: what the loop reads and can do no harm. Nothing that has a
    field here, nothing of rows (they are prepared before), paths, the hub, processes, saving or logging."""


def _only_named(types: Mapping[str, Any]) -> Rule:
    names = sorted(types)
    return Rule(
        f"!has(self.extraArgs) || self.extraArgs.all(k, k in {names})",
        f"this kind's may name {', '.join(names)}: remove others",
        lambda self: set(self.extra_args or {}) <= set(types),
        "extraArgs",
    )


class GrpoTraining(TrainingBase):
    """Hyper-parameters of the loop, with TRL's meanings; grpo has no maxLength."""

    extra_arg_types: ClassVar = TrainingBase.extra_arg_types | {
        "min_p": Annotated[float, Field(ge=0, le=1)],
        "off_policy_mask_threshold": Annotated[float, Field(gt=0, le=1000)],
        "use_bias_correction_kl": bool,
    }
    rules: ClassVar = (*TrainingBase.rules, _only_named(extra_arg_types))


class Training(TrainingBase):
    """Hyper-parameters of the loop, with TRL's meanings."""

    rules: ClassVar[tuple[Rule, ...]] = (*TrainingBase.rules, _only_named(TrainingBase.extra_arg_types))

    max_length: Annotated[Int32, Field(ge=8), RESOLVED] = 1024
    """Longest sequence in tokens; what happens to longer rows is counted in the report."""
    activation_offloading: bool = False
    """Keep what the backward pass needs of a forward pass in the host's memory: less memory of the GPU, slower."""


class SftTraining(Training):
    """Hyper-parameters of the loop, with TRL's meanings."""

    extra_arg_types: ClassVar = Training.extra_arg_types | {
        "neftune_noise_alpha": Annotated[float, Field(ge=0, le=1000)]
    }
    rules: ClassVar = (*TrainingBase.rules, _only_named(extra_arg_types))


class Peft(Model):
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.method != 'none'"
            " || !(has(self.targetModules) || has(self.targetParameters) || has(self.modulesToSave))",
            "targetModules, targetParameters and modulesToSave have no meaning with method none: remove them",
            lambda self: (
                self.method != "none" or not (self.target_modules or self.target_parameters or self.modules_to_save)
            ),
        ),
        Rule(
            "!has(self.targetParameters) || !has(self.useDora) || !self.useDora",
            "targetParameters do not go with useDora: remove one",
            lambda self: not (self.target_parameters and self.use_dora),
        ),
    )

    method: Literal["lora", "qlora", "none"] = "lora"
    """lora and qlora train an adapter, none trains all weights. qlora needs a GPU."""
    r: Annotated[Int32, Field(ge=1, le=1024), RESOLVED] = 16
    """Rank of the adapter."""
    alpha: Annotated[Int32, Field(ge=1, le=4096), RESOLVED] = 32
    """Scale of the adapter."""
    target_modules: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Modules that get an adapter; [all-linear] if unset, which may stand beside other names. A name that the model
    does not have is refused."""
    target_parameters: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Parameters that get an adapter and are no module's weight, like mlp.experts.gate_up_proj of a mixture of
    experts."""
    modules_to_save: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Modules trained in full beside the adapter."""
    use_dora: bool = False
    """Weight-decomposed LoRA."""
    use_rslora: bool = False
    """Rank-stabilized LoRA."""

    @property
    def lora_dropout(self) -> float:
        """peft's lora_dropout; 0 for a kind in which TRL switches dropout off."""
        return 0.0


class PeftWithDropout(Peft):
    """Of a kind in which TRL leaves dropout on."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *Peft.rules,
        Rule(
            "!has(self.dropout) || self.dropout == 0.0 || self.method != 'none' && !has(self.targetParameters)",
            "dropout goes with an adapter, and not with targetParameters: remove it",
            lambda self: self.dropout == 0 or (self.method != "none" and not self.target_parameters),
        ),
    )

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that are left out in training. With several processes gradientCheckpointing is off
    then: it would recompute with another share left out."""

    @property
    def lora_dropout(self) -> float:
        return self.dropout


class ResumeFrom(Model):
    """An earlier job of the same kind and shape (docs/resume.md): exactly one of `job` and `volume`."""

    rules: ClassVar = (
        Rule(
            "has(self.job) != has(self.volume)",
            "give exactly one of job, volume",
            lambda self: (self.job is None) != (self.volume is None),
        ),
    )

    job: Name | None = None
    """A job of the same kind in the same namespace. This one waits until it has ended, however it has."""
    volume: Volume | None = None
    """The folder that an earlier job has made in its claim, and which has the job's uid for its name."""
    step: Annotated[Int32, Field(ge=1)] | None = None
    """The checkpoint to go on from; the newest that verifies if unset."""


class Checkpoint(Model):
    rules: ClassVar = (
        Rule(
            "[has(self.everyMinutes), has(self.everySteps), has(self.everyEpochs)].filter(h, h).size() <= 1",
            "give only one of everyMinutes, everySteps and everyEpochs",
            lambda self: [self.every_minutes, self.every_steps, self.every_epochs].count(None) >= 2,
        ),
    )

    every_minutes: Annotated[float, Field(gt=0, le=10080)] | None = None
    """Publish a checkpoint every so many minutes. Default: 15, unless everySteps or everyEpochs is given."""
    every_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Publish a checkpoint every so many steps."""
    every_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Publish a checkpoint every so many epochs, such as 0.5: rounded to steps."""
    keep: Annotated[Int32, Field(ge=2, le=100)] = 3
    """How many published checkpoints are kept."""
    resume_from: ResumeFrom | None = None
    """Go on from the checkpoint of an earlier job, which is only read; this job begins where that one had come to, and
    fails if it cannot."""

    def resuming(self, volume: Volume) -> "Checkpoint":
        """Return the same with the folder of the earlier job in place of its name."""
        step = None if self.resume_from is None else self.resume_from.step
        return self.model_copy(update={"resume_from": ResumeFrom(volume=volume, step=step)})


class Fsdp(Model):
    """FSDP2, used whenever the job has more than one process."""

    reshard_after_forward: bool = True
    """Free the gathered weights after the forward pass: less memory, more communication."""
    hybrid: bool = False
    """Shard inside each node and keep one copy per node: less traffic between nodes, more memory. Needs several nodes
    with several processes each."""
    cpu_offload: bool = False
    """Keep shards of weights, gradients and optimizer state in the host's memory, and step the optimizer there: less
    memory of the GPU, much slower. Needs GPUs and several processes; not with qlora."""
    state_dict_type: Literal["auto", "sharded", "full"] = "auto"
    """Form of the checkpoints of several processes; either holds only what is trained, and either is resumed from.
    sharded (auto): each process writes its part while training goes on. full: rank 0 gathers and writes it."""


class Tensorboard(Model):
    path: RelativePath = "tensorboard"
    """Folder for event files, inside the job's folder on the storage volume."""


class Wandb(Model):
    project: Annotated[str, Field(min_length=1, max_length=128)]
    """W&B project."""
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """W&B entity (user or team)."""
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=16)] = []
    """Tags of the run."""
    secret_ref: SecretKeyRef | None = None
    """Secret with the API key; without it the run is recorded offline on the storage volume."""


class Tracking(Model):
    tensorboard: Tensorboard | None = None
    """Write TensorBoard event files."""
    wandb: Wandb | None = None
    """Send metrics to Weights & Biases: one run across all attempts."""
