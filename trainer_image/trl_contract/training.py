"""The training part of the four custom resources: the one list of hyper-parameters in this project.

The CRD schema is generated from these models, the operator copies the user's values into the job file and the trainer
reads them there. A name that TRL, transformers or peft has keeps that name and its values.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trl_contract.base import Int32, Key, Kind, Model, Name, RelativePath, Text, cel


def _exactly_one(model: Model, names: tuple[str, ...], field: str) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"{field}: give exactly one of {', '.join(names)}; got {', '.join(given) or 'none'}")


class SecretKeyRef(Model):
    name: Name
    """Name of a Secret in the job's namespace."""
    key: Key = "token"
    """Key in that Secret."""


class HubModel(Model):
    repo: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)?$")]
    """Repository of the model, like Qwen/Qwen2.5-0.5B-Instruct."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Branch, tag or commit; the default branch if unset."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret that holds the access token of a private or gated repository."""


class Volume(Model):
    claim_name: Name
    """Name of a PersistentVolumeClaim in the job's namespace."""
    path: RelativePath
    """Path inside the volume."""


class ConfigMapKey(Model):
    name: Name
    """Name of a ConfigMap in the job's namespace."""
    key: Key
    """Key in that ConfigMap; its extension (.jsonl, .json, .csv) says the format."""


class ModelSource(Model):
    """Where the base model comes from: exactly one of `hub` and `volume`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel("(has(self.hub)?1:0)+(has(self.volume)?1:0)==1", "give exactly one of hub, volume")
            ]
        }
    )

    hub: HubModel | None = None
    """A model on the Hugging Face hub."""
    volume: Volume | None = None
    """A model folder (config.json, safetensors, tokenizer) in a claim."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    """Attention kernel; unset: the library chooses."""
    chat_template: Text | None = None
    """Jinja chat template that replaces the tokenizer's own."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        _exactly_one(self, ("hub", "volume"), "model")
        return self


class HubDataset(Model):
    repo: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)?$")]
    """Repository of the data set, like trl-lib/ultrafeedback_binarized."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Branch, tag or commit; the default branch if unset."""
    config: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Configuration (subset) of the data set."""
    split: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Split; `train` for `dataset.train` and `test` for `dataset.eval` if unset."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret that holds the access token of a private or gated repository."""


class DataSource(Model):
    """Rows of training data: exactly one of `hub`, `volume`, `configMap` and `inline`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(has(self.hub)?1:0)+(has(self.volume)?1:0)+(has(self.configMap)?1:0)+(has(self.inline)?1:0)==1",
                    "give exactly one of hub, volume, configMap, inline",
                )
            ]
        }
    )

    hub: HubDataset | None = None
    """A data set on the Hugging Face hub."""
    volume: Volume | None = None
    """A file in a claim: .jsonl, .json, .csv or .parquet, also .gz of the first three."""
    config_map: ConfigMapKey | None = None
    """A key of a ConfigMap."""
    inline: (
        Annotated[
            list[Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]],
            Field(min_length=1, max_length=1000),
        ]
        | None
    ) = None
    """The rows themselves, at most 1,000 and 128 KiB."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        _exactly_one(self, ("hub", "volume", "config_map", "inline"), "dataset")
        return self


class Dataset(Model):
    train: DataSource
    """Rows to train on."""
    eval: DataSource | None = None
    """Rows to evaluate on; unset: `evalSplit` of the training rows are held out."""
    eval_split: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the training rows held out when there is no `eval`; 0 means no evaluation."""
    seed: Annotated[Int32, Field(ge=0)] = 42
    """Seed of the split and of the order of the rows."""
    shuffle: bool = True
    """Shuffle the rows before each epoch."""
    max_examples: Annotated[Int32, Field(ge=1)] | None = None
    """Use only so many training rows (the first ones)."""
    columns: Annotated[dict[str, Annotated[str, Field(max_length=200)]], Field(max_length=20)] | None = None
    """What TRL expects: the name in the data. For example {chosen: good_answer}."""
    system_prompt: Text | None = None
    """System message put before every conversation that has none."""
    max_bad_rows: Annotated[Int32, Field(ge=0)] = 0
    """So many malformed rows are dropped and counted; one more fails the job."""


class PromptDataset(Dataset):
    """A data set with prompts of its own (dpo, grpo)."""

    max_prompt_length: Annotated[Int32, Field(ge=1)] | None = None
    """Rows whose prompt has more tokens are dropped and counted."""


LrScheduler = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
]
Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adamw_bnb_8bit", "paged_adamw_8bit"]


class GrpoTraining(Model):
    """Hyper-parameters of the loop, with TRL's meanings; grpo has no maxLength."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel("!(has(self.epochs) && has(self.maxSteps))", "give epochs or maxSteps, not both"),
                cel("!(has(self.warmupSteps) && has(self.warmupRatio))", "give warmupSteps or warmupRatio, not both"),
            ]
        }
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
    warmup_steps: Annotated[Int32, Field(ge=0)] | None = None
    """Steps of warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps that warm up; 0.1 if neither is given."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Weight decay of the optimizer."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Optimizer = "adamw_torch_fused"
    """Optimizer, by transformers' name."""
    precision: Literal["bf16", "fp32"] | None = None
    """Arithmetic of the forward pass. Default: bf16 with GPUs, fp32 without."""
    seed: Annotated[Int32, Field(ge=0)] = 42
    """Seed of everything random."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass. Default: on with GPUs and models over 1B parameters."""
    logging_steps: Annotated[Int32, Field(ge=1)] = 10
    """Steps between two log entries."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("training: give epochs or maxSteps, not both")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("training: give warmupSteps or warmupRatio, not both")
        return self


class Training(GrpoTraining):
    """Hyper-parameters of the loop, with TRL's meanings."""

    max_length: Annotated[Int32, Field(ge=8)] = 1024
    """Longest sequence in tokens; what happens to longer rows is counted in the report."""


class Peft(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.method != 'none' || !(has(self.targetModules) || has(self.modulesToSave))",
                    "targetModules and modulesToSave have no meaning with method none: remove them",
                )
            ]
        }
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
    """Modules that get an adapter; [all-linear] if unset."""
    modules_to_save: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Modules trained in full beside the adapter."""
    use_dora: bool = False
    """Weight-decomposed LoRA."""
    use_rslora: bool = False
    """Rank-stabilized LoRA."""

    @model_validator(mode="after")
    def _none_has_no_adapter(self) -> Self:
        if self.method == "none" and (self.target_modules or self.modules_to_save):
            raise ValueError("peft: targetModules and modulesToSave have no meaning with method none: remove them")
        return self


DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


class ReferenceModel(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(self.mode == 'explicit') == has(self.source)",
                    "source goes with mode explicit, and only with it",
                )
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
        return self


class Dpo(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.lossWeights) || size(self.lossWeights) == size(self.lossType)",
                    "lossWeights needs one weight for each lossType",
                ),
                cel(
                    "!has(self.labelSmoothing) || self.labelSmoothing == 0.0"
                    " || self.lossType.exists(l, l in ['robust', 'exo_pair'])",
                    "labelSmoothing works only with lossType robust or exo_pair",
                ),
            ]
        }
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

    @model_validator(mode="after")
    def _losses_agree(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError("dpo.lossWeights: needs one weight for each lossType")
        if self.label_smoothing and not {"robust", "exo_pair"} & set(self.loss_type):
            raise ValueError("dpo.labelSmoothing: works only with lossType robust or exo_pair")
        return self


class Sft(Model):
    packing: bool = False
    """Pack several short rows into one sequence."""
    completion_only_loss: bool | None = None
    """Train on completions only; unset: TRL's rule (on for prompt-completion data)."""
    assistant_only_loss: bool = False
    """Train on assistant turns only; needs conversations and a chat template that marks generation."""


class Reward(Model):
    center_rewards_coefficient: Annotated[float, Field(ge=0, le=10)] | None = None
    """Pulls the mean reward towards 0."""


class LengthReward(Model):
    """Either `target` (1 at the target, falling linearly to 0 at 0 and at twice the target) or a range `min` to `max`
    (1 inside, 0 outside), in words of the completion."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "has(self.target) != (has(self.min) || has(self.max))",
                    "give target, or min and max",
                ),
                cel("has(self.min) == has(self.max)", "min and max go together"),
                cel("!has(self.min) || !has(self.max) || self.min <= self.max", "min must not be above max"),
            ]
        }
    )

    target: Annotated[Int32, Field(ge=1)] | None = None
    min: Annotated[Int32, Field(ge=0)] | None = None
    max: Annotated[Int32, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _target_or_range(self) -> Self:
        if (self.target is not None) == (self.min is not None or self.max is not None):
            raise ValueError("length: give target, or min and max")
        if (self.min is None) != (self.max is None):
            raise ValueError("length: min and max go together")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("length: min must not be above max")
        return self


class KeywordReward(Model):
    words: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=256)]
    """Words or phrases, compared without case at word boundaries."""
    mode: Literal["any", "all", "none"] = "any"
    """1 if any, all or none of the words occur, else 0."""


class RegexReward(Model):
    pattern: Annotated[str, Field(min_length=1, max_length=2048)]
    """Python regular expression; 1 if it is found anywhere in the completion, else 0."""


class FormatReward(Model):
    template: Annotated[str, Field(min_length=1, max_length=2048)]
    """Literal text with `...` for anything in between; 1 if the whole completion has this form, else 0."""


class JsonSchemaReward(Model):
    schema_: Annotated[str, Field(alias="schema", min_length=2, max_length=16384)]
    """JSON schema as a JSON string; 1 if the completion is JSON that satisfies it, else 0."""


class SimilarityReward(Model):
    column: Annotated[str, Field(min_length=1, max_length=200)]
    """Column with the reference text; the reward is the F1 of the words that both share (with multiplicity)."""


class AccuracyReward(Model):
    column: Annotated[str, Field(min_length=1, max_length=200)]
    """Column with the right answer."""
    numeric: bool = False
    """Compare the last number in the completion with the answer's, instead of the stripped text."""


class PythonReward(Model):
    config_map: ConfigMapKey
    """ConfigMap key with the module's source."""
    function: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Called as f(prompts, completions, **columns); returns one number per completion."""
    timeout_seconds: Annotated[Int32, Field(ge=1, le=3600)] = 60
    """Time limit of one call."""


class RewardModelReward(Model):
    volume: Volume
    """Folder of a sequence classification model with one label, for example a RewardJob's `final`."""


class HttpReward(Model):
    url: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            pattern=r"^(https://[^@\s]+|http://[a-z0-9.-]+\.svc(\.cluster\.local)?(:[0-9]+)?(/[^@\s]*)?)$",
        ),
    ]
    """https, or http inside the cluster. It gets {prompts, completions, columns} and answers {rewards: [...]}."""
    timeout_seconds: Annotated[Int32, Field(ge=1, le=600)] = 30
    """Time limit of one request; it is tried three times."""
    secret_ref: SecretKeyRef | None = None
    """Secret with a token that is sent as Authorization: Bearer."""


REWARD_TYPES = (
    "length",
    "keyword",
    "regex",
    "format",
    "json_schema",
    "similarity",
    "accuracy",
    "python",
    "reward_model",
    "http",
)


class RewardFunction(Model):
    """One reward: exactly one of length, keyword, regex, format, jsonSchema, similarity, accuracy, python,
    rewardModel and http."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(has(self.length)?1:0)+(has(self.keyword)?1:0)+(has(self.regex)?1:0)+(has(self.format)?1:0)"
                    "+(has(self.jsonSchema)?1:0)+(has(self.similarity)?1:0)+(has(self.accuracy)?1:0)"
                    "+(has(self.python)?1:0)+(has(self.rewardModel)?1:0)+(has(self.http)?1:0)==1",
                    "give exactly one of length, keyword, regex, format, jsonSchema, similarity, accuracy, python,"
                    " rewardModel, http",
                )
            ]
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """Name in metrics and status."""
    weight: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    """Weight in the sum."""
    on_error: Literal["fail", "zero"] = "fail"
    """An error fails the job, or counts as 0 and is counted."""
    length: LengthReward | None = None
    """By the number of words."""
    keyword: KeywordReward | None = None
    """By words that occur."""
    regex: RegexReward | None = None
    """By a regular expression."""
    format: FormatReward | None = None
    """By the form of the whole completion."""
    json_schema: JsonSchemaReward | None = None
    """By a JSON schema."""
    similarity: SimilarityReward | None = None
    """By words shared with a reference."""
    accuracy: AccuracyReward | None = None
    """By the right answer."""
    python: PythonReward | None = None
    """By a function of your own."""
    reward_model: RewardModelReward | None = None
    """By a trained reward model."""
    http: HttpReward | None = None
    """By a service."""

    @model_validator(mode="after")
    def _one_type(self) -> Self:
        _exactly_one(self, REWARD_TYPES, "grpo.rewards")
        return self


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


class Grpo(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.rewards.all(r, self.rewards.exists_one(s, s.name == r.name))",
                    "rewards must have different names",
                )
            ]
        }
    )

    beta: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Strength of the tie to the reference model; 0 switches it off and raises the condition KLPenaltyDisabled."""
    num_generations: Annotated[Int32, Field(ge=2, le=1024)] = 4
    """Completions per prompt. perDeviceBatchSize x processes x gradientAccumulationSteps must be a multiple of it."""
    num_iterations: Annotated[Int32, Field(ge=1, le=64)] = 1
    """Optimizer passes over each batch of completions."""
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo"] = "dapo"
    """How the loss is normalized."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What rewards are divided by: the standard deviation of their group or of the batch, or nothing."""
    epsilon: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Clipping of the ratio from below (and above, unless epsilonHigh)."""
    epsilon_high: Annotated[float, Field(gt=0, le=10)] | None = None
    """Clipping of the ratio from above."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """What the ratio is computed on."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut off out of the loss."""
    generation: Generation = Generation()
    """How completions are sampled."""
    rewards: Annotated[list[RewardFunction], Field(min_length=1, max_length=16)]
    """What is rewarded."""
    reward_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Whether rewards are added before or after they are normalized."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError("grpo.rewards: rewards must have different names")
        return self


class EvaluationBase(Model):
    enabled: bool = True
    """Evaluate on held-out rows before and after training."""
    every_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Evaluate also every so many steps."""
    per_device_batch_size: Annotated[Int32, Field(ge=1, le=4096)] | None = None
    """Rows per process; as training's if unset."""
    max_examples: Annotated[Int32, Field(ge=1)] = 512
    """At most so many held-out rows."""


class RewardEvaluation(EvaluationBase):
    """Evaluation of a reward model."""


class Evaluation(EvaluationBase):
    sample_prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=2048)]], Field(max_length=16)] = []
    """Prompts answered by the base and by the tuned model, in final/samples.jsonl."""


class GrpoEvaluation(Evaluation):
    max_examples: Annotated[Int32, Field(ge=1)] = 64
    """At most so many held-out prompts."""


class Checkpoint(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel("!(has(self.everyMinutes) && has(self.everySteps))", "give everyMinutes or everySteps, not both")
            ]
        }
    )

    every_minutes: Annotated[float, Field(gt=0, le=10080)] | None = None
    """Publish a checkpoint every so many minutes; 15 if neither is given."""
    every_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Publish a checkpoint every so many steps."""
    keep: Annotated[Int32, Field(ge=2, le=100)] = 3
    """How many published checkpoints are kept."""

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if self.every_minutes is not None and self.every_steps is not None:
            raise ValueError("checkpoint: give everyMinutes or everySteps, not both")
        return self


class Fsdp(Model):
    """FSDP2, used whenever the job has more than one process."""

    reshard_after_forward: bool = True
    """Free the gathered weights after the forward pass: less memory, more communication."""
    state_dict_type: Literal["auto", "sharded", "full"] = "auto"
    """Form of the checkpoints. auto: sharded for full fine-tuning, full for adapters."""


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
    """What all four kinds have in common."""

    model: ModelSource
    """The base model."""
    peft: Peft = Peft()
    """Adapter or full fine-tuning."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are published and how many are kept."""
    fsdp: Fsdp = Fsdp()
    """How the model is sharded over processes."""
    tracking: Tracking | None = None
    """Experiment trackers."""


class SFTSpec(TrainingSpec):
    dataset: Dataset
    """Conversations (messages), prompt and completion, or text."""
    training: Training = Training()
    """Hyper-parameters of the loop."""
    sft: Sft = Sft()
    """What the loss is computed on."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out rows."""


class RewardSpec(TrainingSpec):
    dataset: Dataset
    """Preference pairs: chosen and rejected, with or without prompt."""
    training: Training = Training()
    """Hyper-parameters of the loop."""
    reward: Reward = Reward()
    """The loss."""
    evaluation: RewardEvaluation = RewardEvaluation()
    """Evaluation on held-out pairs."""


class DPOSpec(TrainingSpec):
    dataset: PromptDataset
    """Preference pairs: prompt, chosen, rejected."""
    training: Training = Training()
    """Hyper-parameters of the loop."""
    dpo: Dpo = Dpo()
    """The loss."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out pairs."""


class GRPOSpec(TrainingSpec):
    dataset: PromptDataset
    """Prompts; other columns reach the rewards."""
    training: GrpoTraining = GrpoTraining()
    """Hyper-parameters of the loop."""
    grpo: Grpo
    """Generation, rewards and loss."""
    evaluation: GrpoEvaluation = GrpoEvaluation()
    """Evaluation on held-out prompts."""


SPECS: dict[Kind, type[TrainingSpec]] = {
    "SFTJob": SFTSpec,
    "RewardJob": RewardSpec,
    "DPOJob": DPOSpec,
    "GRPOJob": GRPOSpec,
}
"""The training part of each kind."""
