"""What one kind of training has of its own: its loss, its reference model, its generation and rewards."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trl_contract.base import RESOLVED, Int32, Model, Rule, cel
from trl_contract.rewards import PRESETS, RewardFunction, RewardPreset
from trl_contract.sources import ModelSource

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
    """auto: the base model (with an adapter: the model with the adapter off), from two epochs on as with precompute;
    precompute: its log-probabilities are computed once before training, and kept on the storage volume for jobs that
    need the same; explicit: another model."""
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
            "!has(self.lossWeights) || self.lossWeights.exists(w, w > 0.0)",
            "lossWeights: all are 0, and nothing is learnt: give one above 0, or remove lossWeights",
            lambda self: self.loss_weights is None or any(self.loss_weights),
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

    beta: Annotated[float, Field(gt=0, le=100), RESOLVED] = 0.1
    """Strength of the tie to the reference model."""
    loss_type: Annotated[list[DpoLoss], Field(min_length=1, max_length=8)] = ["sigmoid"]
    """Losses that are added up."""
    loss_weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=8)] | None = None
    """One weight per loss; 1 each if unset."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """Assumed share of wrong labels (robust, exo_pair); 0 if unset."""
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
    """Pulls the mean reward towards 0; not at all if unset."""
    min_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least accuracy on the held-out pairs after training. Below it the job fails (RewardModelNotValidated) and leaves
    no model, only its checkpoints. Unset: whoever uses the model asks for rewardModel.minAccuracy."""


class Generation(Model):
    max_completion_length: Annotated[Int32, Field(ge=1, le=131072), RESOLVED] = 256
    """Longest completion in tokens."""
    temperature: Annotated[float, Field(gt=0, le=10), RESOLVED] = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1), RESOLVED] = 1.0
    """Nucleus sampling."""
    top_k: Annotated[Int32, Field(ge=0)] | None = None
    """Sample only from the k likeliest tokens; from all if 0 or unset."""
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
            "!has(self.rewards) || self.rewards.size() == 0 || has(self.rewardPreset)"
            " || self.rewards.exists(r, r.weight != 0.0)",
            "rewards: all weights are 0, and nothing is learnt: give one another weight",
            lambda self: (
                not self.rewards or self.reward_preset is not None or any(reward.weight for reward in self.rewards)
            ),
        ),
        Rule(
            "self.rewardAggregation != 'geometric_mean' || " + _of_each("!has(r.softOverlong) || r.weight == 0.0"),
            "rewards: softOverlong is never above 0, so rewardAggregation geometric_mean would always be 0: remove it,"
            " or use sum_then_normalize",
            lambda self: (
                self.reward_aggregation != "geometric_mean"
                or all(reward.soft_overlong is None or reward.weight == 0 for reward in self.rewards)
            ),
        ),
        Rule(
            "!has(self.generation.maxCompletionLength) || "
            + _of_each("!has(r.softOverlong) || r.softOverlong.cache <= self.generation.maxCompletionLength"),
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

    beta: Annotated[float, Field(ge=0, le=100), RESOLVED] = 0.01
    """Strength of the tie to the reference model; 0 switches it off and raises the condition KLPenaltyDisabled."""
    num_generations: Annotated[Int32, Field(ge=2, le=1024), RESOLVED] = 4
    """Completions per prompt. perDeviceBatchSize x processes x gradientAccumulationSteps must be a multiple of it."""
    num_iterations: Annotated[Int32, Field(ge=1, le=64), RESOLVED] = 1
    """Optimizer passes over each batch of completions."""
    steps_per_generation: Annotated[Int32, Field(ge=1, le=65536)] | None = None
    """Micro-steps for which completions are sampled at once: a multiple of gradientAccumulationSteps, and once that if
    unset. More batches sample faster, and the policy has moved on when the later ones are learnt from."""
    loss_type: GrpoLoss = "dapo"
    """How the loss is normalized."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What rewards are divided by: the standard deviation of their group or of the batch, or nothing."""
    epsilon: Annotated[float, Field(gt=0, le=10), RESOLVED] = 0.2
    """Clipping of the ratio from below (and above, unless epsilonHigh)."""
    epsilon_high: Annotated[float, Field(gt=0, le=10)] | None = None
    """Clipping of the ratio from above; epsilon if unset."""
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
