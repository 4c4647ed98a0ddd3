"""The training part of the four custom resources: the one list of hyper-parameters in this project.

The CRD schema is generated from these models, the operator copies the user's values into the job file and the trainer
reads them there. A name that TRL, transformers or peft has keeps that name and its values.
"""

from math import gcd
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trl_contract.base import Int32, Kind, Model, RelativePath, Rule, cel
from trl_contract.rewards import PRESETS, RewardFunction, RewardPreset
from trl_contract.sources import Dataset, ModelSource, PromptDataset, SecretKeyRef

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


class GrpoTraining(Model):
    """Hyper-parameters of the loop, with TRL's meanings; grpo has no maxLength."""

    rules: ClassVar = (
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
            "self.lrScheduler != 'polynomial' || !has(self.learningRate) || self.learningRate > 0.0000001",
            "lrScheduler polynomial ends at learning rate 1e-7: raise learningRate above it, or use linear",
            lambda self: self.lr_scheduler != "polynomial" or self.learning_rate is None or self.learning_rate > 1e-7,
        ),
        Rule(
            "!has(self.lrSchedulerArgs) || self.lrScheduler in ['cosine_with_min_lr', 'warmup_stable_decay']",
            "lrSchedulerArgs are for lrScheduler cosine_with_min_lr and warmup_stable_decay: remove them, or use one"
            " of these",
            lambda self: self.lr_scheduler_args is None or self.lr_scheduler in SCHEDULERS_WITH_ARGS,
        ),
        Rule(
            "!has(self.lrSchedulerArgs) || self.lrScheduler == 'warmup_stable_decay'"
            " || !(has(self.lrSchedulerArgs.decayRatio) || has(self.lrSchedulerArgs.decayType))",
            "lrSchedulerArgs: decayRatio and decayType are for lrScheduler warmup_stable_decay: remove them",
            lambda self: (
                self.lr_scheduler_args is None
                or self.lr_scheduler == "warmup_stable_decay"
                or self.lr_scheduler_args.decay_ratio is self.lr_scheduler_args.decay_type is None
            ),
        ),
        Rule(
            "!(has(self.adamBeta1) || has(self.adamBeta2) || has(self.adamEpsilon))"
            " || !(self.optimizer in ['adafactor', 'sgd'])",
            "adamBeta1, adamBeta2 and adamEpsilon have no meaning for optimizer adafactor and sgd: remove them",
            lambda self: (
                self.adam_beta1 is self.adam_beta2 is self.adam_epsilon is None
                or self.optimizer not in ("adafactor", "sgd")
            ),
        ),
    )

    epochs: Annotated[float, Field(gt=0, le=10000)] | None = None
    """Passes over the training rows; 1 if neither epochs nor maxSteps is given."""
    max_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Optimizer steps to train, instead of epochs."""
    per_device_batch_size: Annotated[Int32, Field(ge=1, le=4096)] = 4
    """Rows (dpo, reward: pairs; grpo: completions) per process and micro-step."""
    gradient_accumulation_steps: Annotated[Int32, Field(ge=1, le=4096)] = 4
    """Micro-steps per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: sft 2e-5, reward 1e-5, dpo and grpo 1e-6; ten times that with lora and qlora."""
    lr_scheduler: LrScheduler = "cosine"
    """Shape of the learning rate over the run."""
    lr_scheduler_args: LrSchedulerArgs | None = None
    """Arguments of cosine_with_min_lr and warmup_stable_decay."""
    warmup_steps: Annotated[Int32, Field(ge=0)] | None = None
    """Steps of warm-up, but never all of them."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps that warm up, but never all of them; 0.1 if neither is given."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Weight decay of the optimizer."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Optimizer = "adamw_torch_fused"
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
    """Recompute activations in the backward pass. Default: with GPUs, on where the estimate does not fit without; off
    without GPUs."""
    logging_steps: Annotated[Int32, Field(ge=1)] = 10
    """Steps between two log entries."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""


class Training(GrpoTraining):
    """Hyper-parameters of the loop, with TRL's meanings."""

    max_length: Annotated[Int32, Field(ge=8)] = 1024
    """Longest sequence in tokens; what happens to longer rows is counted in the report."""
    activation_offloading: bool = False
    """Keep what the backward pass needs of a forward pass in the host's memory: less memory of the GPU, slower."""


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
    r: Annotated[Int32, Field(ge=1, le=1024)] = 16
    """Rank of the adapter."""
    alpha: Annotated[Int32, Field(ge=1, le=4096)] = 32
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


DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


GrpoLoss = Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"]


OF_THE_MODEL = ("attnImplementation", "chatTemplate", "eosToken", "padToken", "addTokens")
"""Fields of a ModelSource that a reference shares with the model that is trained."""


class ReferenceModel(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(self.mode == 'explicit') == has(self.source)",
                    "source goes with mode explicit, and only with it",
                ),
                cel(
                    f"!has(self.source) || !({' || '.join(f'has(self.source.{name})' for name in OF_THE_MODEL)})",
                    f"source: the reference has these of model: remove {', '.join(OF_THE_MODEL)}",
                ),
            ]
        }
    )

    mode: Literal["auto", "precompute", "explicit"] = "auto"
    """auto: the base model (with an adapter: the model with the adapter off); precompute: its log-probabilities are
    computed once before training; explicit: another model."""
    source: ModelSource | None = None
    """The model of mode explicit."""

    @model_validator(mode="after")
    def _explicit_has_source(self) -> Self:
        if (self.mode == "explicit") != (self.source is not None):
            raise ValueError("dpo.referenceModel: source goes with mode explicit, and only with it")
        if self.source is not None and not self.source.to_wire().keys().isdisjoint(OF_THE_MODEL):
            raise ValueError(
                f"dpo.referenceModel.source: the reference has these of model: remove {', '.join(OF_THE_MODEL)}"
            )
        return self


DIVERGENCE_LOSSES: frozenset[DpoLoss] = frozenset(
    {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
)
"""What TRL can compute with another divergence than reverse_kl."""
UNWEIGHTED_LOSSES: frozenset[DpoLoss] = frozenset({"aot", "aot_unpaired"})
"""What it cannot weight."""


class Dpo(Model):
    rules: ClassVar = (
        Rule(
            "!has(self.lossWeights) || size(self.lossWeights) == size(self.lossType)",
            "lossWeights needs one weight for each lossType",
            lambda self: self.loss_weights is None or len(self.loss_weights) == len(self.loss_type),
        ),
        Rule(
            "!has(self.labelSmoothing) || self.labelSmoothing == 0.0"
            " || self.lossType.exists(l, l in ['robust', 'exo_pair'])",
            "labelSmoothing works only with lossType robust or exo_pair",
            lambda self: not self.label_smoothing or {"robust", "exo_pair"} & set(self.loss_type) != set(),
        ),
        Rule(
            "!self.lossType.exists(l, l == 'exo_pair') || (has(self.labelSmoothing) && self.labelSmoothing > 0.0)",
            "lossType exo_pair needs labelSmoothing above 0, such as 0.001",
            lambda self: "exo_pair" not in self.loss_type or bool(self.label_smoothing),
        ),
        Rule(
            f"self.fDivergenceType == 'reverse_kl' || self.lossType.all(l, l in {sorted(DIVERGENCE_LOSSES)})",
            f"fDivergenceType other than reverse_kl works only with lossType {', '.join(sorted(DIVERGENCE_LOSSES))}",
            lambda self: self.f_divergence_type == "reverse_kl" or set(self.loss_type) <= DIVERGENCE_LOSSES,
        ),
        Rule(
            "!has(self.fAlphaDivergenceCoef) || self.fDivergenceType == 'alpha_divergence'",
            "fAlphaDivergenceCoef goes with fDivergenceType alpha_divergence, and only with it: remove it",
            lambda self: self.f_alpha_divergence_coef is None or self.f_divergence_type == "alpha_divergence",
        ),
        Rule(
            f"!self.useWeighting || !self.lossType.exists(l, l in {sorted(UNWEIGHTED_LOSSES)})",
            f"useWeighting does not go with lossType {' and '.join(sorted(UNWEIGHTED_LOSSES))}: remove one of the two",
            lambda self: not (self.use_weighting and UNWEIGHTED_LOSSES & set(self.loss_type)),
        ),
    )

    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Strength of the tie to the reference model."""
    loss_type: Annotated[list[DpoLoss], Field(min_length=1, max_length=8)] = ["sigmoid"]
    """Losses that are added up."""
    loss_weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=8)] | None = None
    """One weight per loss; 1 each if unset."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """Assumed share of wrong labels (robust, exo_pair)."""
    reference_model: ReferenceModel = ReferenceModel()
    """What the policy is compared with."""

    f_divergence_type: FDivergence = "reverse_kl"
    """What policy and reference are compared by."""
    f_alpha_divergence_coef: Annotated[float, Field(gt=0, le=10)] | None = None
    """Alpha of alpha_divergence; 0.5 if unset."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of an answer's tokens beyond the length of the other one (LD-DPO); 1 if unset."""
    use_weighting: bool = False
    """Weight pairs by how likely the policy finds them (WPO)."""


class Sft(Model):
    rules: ClassVar = (
        Rule(
            "!has(self.packingStrategy) || self.packing",
            "packingStrategy goes with packing: set packing to true, or remove it",
            lambda self: self.packing_strategy is None or self.packing,
        ),
    )

    packing: bool = False
    """Pack several short rows into one sequence."""
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] | None = None
    """bfd (if unset) keeps rows whole and cuts those longer than maxLength; bfd_split makes several of these; wrapped
    fills every sequence, and cuts rows anywhere."""
    loss_type: Literal["nll", "dft"] = "nll"
    """nll: negative log-likelihood; dft: the same, each token weighted by its probability (Dynamic Fine-Tuning)."""
    completion_only_loss: bool | None = None
    """Train on completions only; unset: TRL's rule (on for prompt-completion data)."""
    assistant_only_loss: bool = False
    """Train on assistant turns only; needs conversations and a chat template that marks generation."""


class Reward(Model):
    center_rewards_coefficient: Annotated[float, Field(ge=0, le=10)] | None = None
    """Pulls the mean reward towards 0."""


class Generation(Model):
    max_completion_length: Annotated[Int32, Field(ge=1, le=131072)] = 256
    """Longest completion in tokens."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling."""
    top_k: Annotated[Int32, Field(ge=0)] | None = None
    """Sample only from the k likeliest tokens."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Above 1 discourages repetition."""


MAX_REWARDS = 16
_PRESET_NAMES = sorted(reward.name for preset in PRESETS.values() for reward in preset)

TWO_SIDED_LOSSES: frozenset[GrpoLoss] = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "luspo"})
"""What delta clips."""


def _of_each(rule: str) -> str:
    """Return the CEL rule that holds if `rule` does of each reward `r`."""
    return f"(!has(self.rewards) || self.rewards.all(r, {rule}))"


class Grpo(Model):
    rules: ClassVar = (
        Rule(
            _of_each("self.rewards.exists_one(s, s.name == r.name)"),
            "rewards must have different names",
            lambda self: len({reward.name for reward in self.rewards}) == len(self.rewards),
        ),
        Rule(
            "has(self.rewards) && self.rewards.size() > 0 || has(self.rewardPreset)",
            "rewards: give at least one, or rewardPreset",
            lambda self: bool(self.rewards) or self.reward_preset is not None,
        ),
        Rule(
            "!has(self.rewardPreset) || "
            + _of_each(f"self.rewards.size() <= {MAX_REWARDS - len(_PRESET_NAMES)} && !(r.name in {_PRESET_NAMES})"),
            f"rewardPreset has rewards named {', '.join(_PRESET_NAMES)}: give others other names, and all at most"
            f" {MAX_REWARDS}",
            lambda self: (
                self.reward_preset is None
                or (
                    len(self.rewards) <= MAX_REWARDS - len(_PRESET_NAMES)
                    and not {reward.name for reward in self.rewards} & set(_PRESET_NAMES)
                )
            ),
        ),
        Rule(
            f"!self.normalizeWeights && self.rewardAggregation != 'geometric_mean' || {_of_each('r.weight >= 0.0')}"
            " && (has(self.rewardPreset) || self.rewards.exists(r, r.weight > 0.0))",
            "normalizeWeights and rewardAggregation geometric_mean need a weight of at least 0 for each of rewards, and"
            " one above 0",
            lambda self: (
                (not self.normalize_weights and self.reward_aggregation != "geometric_mean")
                or (
                    all(reward.weight >= 0 for reward in self.rewards)
                    and (self.reward_preset is not None or any(reward.weight > 0 for reward in self.rewards))
                )
            ),
        ),
        Rule(
            _of_each("!has(r.softOverlong) || r.softOverlong.cache <= self.generation.maxCompletionLength"),
            "rewards: softOverlong.cache must not be above generation.maxCompletionLength",
            lambda self: all(
                reward.soft_overlong is None or reward.soft_overlong.cache <= self.generation.max_completion_length
                for reward in self.rewards
            ),
        ),
        Rule(
            f"!has(self.delta) || self.lossType in {sorted(TWO_SIDED_LOSSES)}",
            f"delta works only with lossType {', '.join(sorted(TWO_SIDED_LOSSES))}: remove it",
            lambda self: self.delta is None or self.loss_type in TWO_SIDED_LOSSES,
        ),
    )

    beta: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Strength of the tie to the reference model; 0 switches it off and raises the condition KLPenaltyDisabled."""
    num_generations: Annotated[Int32, Field(ge=2, le=1024)] = 4
    """Completions per prompt. perDeviceBatchSize x processes x gradientAccumulationSteps must be a multiple of it."""
    num_iterations: Annotated[Int32, Field(ge=1, le=64)] = 1
    """Optimizer passes over each batch of completions."""
    steps_per_generation: Annotated[Int32, Field(ge=1, le=65536)] | None = None
    """Micro-steps for which completions are sampled at once: a multiple of gradientAccumulationSteps, and once that if
    unset. More batches sample faster, and the policy has moved on when the later ones are learnt from."""
    loss_type: GrpoLoss = "dapo"
    """How the loss is normalized."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What rewards are divided by: the standard deviation of their group or of the batch, or nothing."""
    epsilon: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Clipping of the ratio from below (and above, unless epsilonHigh)."""
    epsilon_high: Annotated[float, Field(gt=0, le=10)] | None = None
    """Clipping of the ratio from above."""
    delta: Annotated[float, Field(gt=1, le=100)] | None = None
    """Clipping of the ratio itself from above, whatever the advantage (INTELLECT-2); should be above 1 + epsilon."""
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learn only from this share of the tokens, those with the highest entropy."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """What the ratio is computed on."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut off out of the loss."""
    generation: Generation = Generation()
    """How completions are sampled."""
    rewards: Annotated[list[RewardFunction], Field(max_length=MAX_REWARDS)] = []
    """What is rewarded."""
    reward_preset: RewardPreset | None = None
    """A list of rewards before these; `explain` shows it in full. customer-service: empathy, action, courtesy, no
    slang, and 50 to 200 words."""
    normalize_weights: bool = False
    """Divide the weights by their sum."""
    reward_aggregation: Literal["sum_then_normalize", "normalize_then_sum", "geometric_mean"] = "sum_then_normalize"
    """Whether rewards are added before or after they are normalized; geometric_mean: the weighted geometric mean
    instead of the sum, which is 0 where a reward is 0 or below."""


class EarlyStopping(Model):
    metric: Annotated[str, Field(min_length=1, max_length=64)]
    """Metric of the evaluation, by the name that TRL logs without eval_, like loss or rewards/accuracies."""
    mode: Literal["min", "max"]
    """Whether less or more is better."""
    patience: Annotated[Int32, Field(ge=1, le=1000)] = 3
    """Training ends after so many evaluations in a row without a new best. The last model is exported, not the best."""


class EvaluationBase(Model):
    rules: ClassVar = (
        Rule(
            "!(has(self.everySteps) && has(self.everyEpochs))",
            "give everySteps or everyEpochs, not both",
            lambda self: self.every_steps is None or self.every_epochs is None,
        ),
        Rule(
            "!has(self.earlyStopping) || has(self.everySteps) || has(self.everyEpochs)",
            "earlyStopping needs everySteps or everyEpochs: it looks at the evaluations during training",
            lambda self: self.early_stopping is None or self.is_repeated,
        ),
        Rule(
            "!(has(self.everySteps) || has(self.everyEpochs)) || !has(self.enabled) || self.enabled",
            "everySteps and everyEpochs need evaluation: set enabled to true, or remove them",
            lambda self: self.enabled or not self.is_repeated,
        ),
    )

    enabled: bool = True
    """Evaluate on held-out rows before and after training."""
    at_start: bool = True
    """Evaluate the base model too, so that before and after can be compared."""
    every_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Evaluate also every so many steps."""
    every_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Evaluate also every so many epochs, such as 0.25: rounded to steps."""
    per_device_batch_size: Annotated[Int32, Field(ge=1, le=4096)] | None = None
    """Rows per process; as training's if unset."""
    max_examples: Annotated[Int32, Field(ge=1)] = 512
    """At most so many held-out rows."""
    early_stopping: EarlyStopping | None = None
    """End training when the evaluations do not get better."""

    @property
    def is_repeated(self) -> bool:
        """Whether there are evaluations during training."""
        return self.every_steps is not None or self.every_epochs is not None


class RewardEvaluation(EvaluationBase):
    """Evaluation of a reward model."""


class Evaluation(EvaluationBase):
    sample_prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=2048)]], Field(max_length=16)] = []
    """Prompts answered by the base and by the tuned model, in final/samples.jsonl."""


class GrpoEvaluation(Evaluation):
    max_examples: Annotated[Int32, Field(ge=1)] = 64
    """At most so many held-out prompts."""


class Checkpoint(Model):
    rules: ClassVar = (
        Rule(
            "[has(self.everyMinutes), has(self.everySteps), has(self.everyEpochs)].filter(h, h).size() <= 1",
            "give only one of everyMinutes, everySteps and everyEpochs",
            lambda self: [self.every_minutes, self.every_steps, self.every_epochs].count(None) >= 2,
        ),
    )

    every_minutes: Annotated[float, Field(gt=0, le=10080)] | None = None
    """Publish a checkpoint every so many minutes; 15 if none of the three is given."""
    every_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Publish a checkpoint every so many steps."""
    every_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Publish a checkpoint every so many epochs, such as 0.5: rounded to steps."""
    keep: Annotated[Int32, Field(ge=2, le=100)] = 3
    """How many published checkpoints are kept."""


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


class TrainingSpec(Model):
    """What all kinds have in common, and what every kind says of itself without torch."""

    model: ModelSource
    """The base model."""
    dataset: Dataset
    """Rows of the kind's form."""
    training: GrpoTraining
    """Hyper-parameters of the loop."""
    evaluation: EvaluationBase
    """Evaluation on held-out rows."""
    peft: Peft = Peft()
    """Adapter or full fine-tuning."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are published and how many are kept."""
    fsdp: Fsdp = Fsdp()
    """How the model is sharded over processes."""
    tracking: Tracking | None = None
    """Experiment trackers."""

    learning_rates: ClassVar[tuple[float, float]]
    """Default peak learning rates of full fine-tuning and of adapters."""
    sequences_per_row: ClassVar[int] = 1
    """Sequences that the model sees of one row."""

    @property
    def max_length(self) -> int | None:
        """training.maxLength; None where a kind has none."""
        return None

    @property
    def activation_offloading(self) -> bool:
        """training.activationOffloading; false where a kind has none."""
        return False

    @property
    def cuts_rows(self) -> bool:
        """Whether what is beyond training.maxLength is lost."""
        return True

    def sequence_length(self, longest: int) -> int:
        """Return the tokens of the longest sequence that the model sees, where the longest row has `longest`."""
        return longest if self.max_length is None else min(longest, self.max_length)

    def evaluation_batch_size(self, world: int) -> int:
        """Return the default of evaluation.perDeviceBatchSize."""
        return self.training.per_device_batch_size

    def check_world(self, world: int) -> None:
        """Raise ValueError, from the field on, if so many processes cannot train this."""
        if world > 1 and self.peft.lora_dropout > 0 and self.training.gradient_checkpointing:
            raise ValueError(
                f"peft.dropout: {self.peft.lora_dropout} does not go with training.gradientCheckpointing and {world}"
                " processes, which recompute with other values left out: remove one"
            )

    @property
    def reference(self) -> Literal["none", "base", "precompute", "explicit"]:
        """The model beside the policy that it is compared with; none: there is none, or the policy itself serves."""
        return "none"

    @property
    def explicit_reference(self) -> ModelSource | None:
        """The source of an explicit reference model."""
        return None

    @property
    def rewards(self) -> list[RewardFunction]:
        """The reward functions of a kind that has any."""
        return []

    def with_rewards(self, rewards: list[RewardFunction]) -> "TrainingSpec":
        """Return the same spec with other reward functions, of a kind that has any."""
        raise TypeError(f"{type(self).__name__} has no rewards")

    @property
    def sample_prompts(self) -> list[str]:
        """evaluation.samplePrompts of a kind that answers."""
        return []

    @property
    def has_kl_penalty(self) -> bool:
        """Whether the policy is tied to its base, where a kind can do without."""
        return True

    @property
    def save_multiple(self) -> int:
        """Steps whose multiples can be resumed from exactly."""
        return 1


class SFTSpec(TrainingSpec):
    dataset: Dataset
    """Conversations, prompt and completion, or text. An assistant turn of weight 0 is read and not learnt."""
    training: Training = Training()
    """Hyper-parameters of the loop."""
    peft: PeftWithDropout = PeftWithDropout()
    """Adapter or full fine-tuning."""
    sft: Sft = Sft()
    """What the loss is computed on."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out rows."""

    learning_rates = (2e-5, 2e-4)

    @property
    def max_length(self) -> int:
        return self.training.max_length

    @property
    def activation_offloading(self) -> bool:
        return self.training.activation_offloading

    @property
    def cuts_rows(self) -> bool:
        return self.sft.packing_strategy in (None, "bfd")

    @property
    def sample_prompts(self) -> list[str]:
        return self.evaluation.sample_prompts


class RewardSpec(TrainingSpec):
    dataset: Dataset
    """Preference pairs: chosen and rejected, with or without prompt."""
    training: Training = Training()
    """Hyper-parameters of the loop."""
    reward: Reward = Reward()
    """The loss."""
    evaluation: RewardEvaluation = RewardEvaluation()
    """Evaluation on held-out pairs."""

    learning_rates = (1e-5, 1e-4)
    sequences_per_row = 2

    @property
    def max_length(self) -> int:
        return self.training.max_length

    @property
    def activation_offloading(self) -> bool:
        return self.training.activation_offloading


class DPOSpec(TrainingSpec):
    dataset: PromptDataset
    """Preference pairs: prompt, chosen, rejected."""
    training: Training = Training()
    """Hyper-parameters of the loop."""
    dpo: Dpo = Dpo()
    """The loss."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out pairs."""

    learning_rates = (1e-6, 1e-5)
    sequences_per_row = 2

    @property
    def max_length(self) -> int:
        return self.training.max_length

    @property
    def activation_offloading(self) -> bool:
        return self.training.activation_offloading

    @property
    def reference(self) -> Literal["none", "base", "precompute", "explicit"]:
        mode = self.dpo.reference_model.mode
        if mode == "explicit":
            return "explicit"
        if self.peft.method != "none":
            return "none"
        return "base" if mode == "auto" else "precompute"

    @property
    def explicit_reference(self) -> ModelSource | None:
        return self.dpo.reference_model.source

    @property
    def sample_prompts(self) -> list[str]:
        return self.evaluation.sample_prompts


class GRPOSpec(TrainingSpec):
    dataset: PromptDataset
    """Prompts; other columns reach the rewards."""
    training: GrpoTraining = GrpoTraining()
    """Hyper-parameters of the loop."""
    peft: PeftWithDropout = PeftWithDropout()
    """Adapter or full fine-tuning."""
    grpo: Grpo
    """Generation, rewards and loss."""
    evaluation: GrpoEvaluation = GrpoEvaluation()
    """Evaluation on held-out prompts."""

    learning_rates = (1e-6, 1e-5)

    def sequence_length(self, longest: int) -> int:
        return longest + self.grpo.generation.max_completion_length

    def evaluation_batch_size(self, world: int) -> int:
        # TRL evaluates whole groups: batch x processes must be a multiple of numGenerations.
        step = self.grpo.num_generations // gcd(self.grpo.num_generations, world)
        return -(-self.training.per_device_batch_size // step) * step

    def check_world(self, world: int) -> None:
        super().check_world(world)
        training, groups, size = self.training, self.grpo.num_generations, self.evaluation.per_device_batch_size
        batch = training.per_device_batch_size * world * training.gradient_accumulation_steps
        if self.steps_per_generation % training.gradient_accumulation_steps:
            raise ValueError(
                f"grpo.stepsPerGeneration: {self.steps_per_generation} must be a multiple of"
                f" training.gradientAccumulationSteps {training.gradient_accumulation_steps}: remove it, or change one"
            )
        if batch % groups:
            raise ValueError(
                f"training: perDeviceBatchSize {training.per_device_batch_size} x {world} processes x"
                f" gradientAccumulationSteps {training.gradient_accumulation_steps} = {batch} must be a multiple of"
                f" grpo.numGenerations {groups}: change one of them"
            )
        if size is not None and size * world % groups:
            raise ValueError(
                f"evaluation.perDeviceBatchSize: {size} x {world} processes must be a multiple of grpo.numGenerations"
                f" {groups}: remove it, or use {groups}"
            )

    @property
    def reference(self) -> Literal["none", "base", "precompute", "explicit"]:
        return "base" if self.grpo.beta > 0 and self.peft.method == "none" else "none"

    @property
    def rewards(self) -> list[RewardFunction]:
        return list(self.grpo.rewards)

    def with_rewards(self, rewards: list[RewardFunction]) -> "GRPOSpec":
        return self.model_copy(update={"grpo": self.grpo.model_copy(update={"rewards": rewards})})

    @property
    def sample_prompts(self) -> list[str]:
        return self.evaluation.sample_prompts

    @property
    def has_kl_penalty(self) -> bool:
        return self.grpo.beta > 0

    @property
    def steps_per_generation(self) -> int:
        """grpo.stepsPerGeneration, or its default."""
        return self.grpo.steps_per_generation or self.training.gradient_accumulation_steps

    @property
    def steps_per_sampling(self) -> int:
        """Optimizer steps between two times of sampling."""
        return self.grpo.num_iterations * self.steps_per_generation // self.training.gradient_accumulation_steps

    @property
    def save_multiple(self) -> int:
        # Completions that are yet to be learnt from are not saved.
        return self.steps_per_sampling


SPECS: dict[Kind, type[TrainingSpec]] = {
    "SFTJob": SFTSpec,
    "RewardJob": RewardSpec,
    "DPOJob": DPOSpec,
    "GRPOJob": GRPOSpec,
}
"""The training part of each kind."""
