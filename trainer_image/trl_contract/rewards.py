"""The rewards of a GRPOJob, with their formulas."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trl_contract.base import Int32, Model, Name, Rule, cel
from trl_contract.sources import ConfigMapKey, HubModel, SecretKeyRef, Volume, exactly_one


class LengthReward(Model):
    """Either `target` (1 at the target, falling linearly to 0 at 0 and at twice the target) or a range `min` to `max`
    (1 inside, 0 outside), in words (separated by white space) of the completion."""

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
    """Words, separated by white space, that make 1; it falls linearly to 0 at none and at twice as many."""
    min: Annotated[Int32, Field(ge=0)] | None = None
    """Least number of words that makes 1; fewer make 0."""
    max: Annotated[Int32, Field(ge=0)] | None = None
    """Largest number of words that makes 1; more make 0."""

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
    rules: ClassVar = (
        Rule(
            "!has(self.enough) || self.mode == 'any'",
            "enough goes with mode any: remove it",
            lambda self: self.enough is None or self.mode == "any",
        ),
    )

    words: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=256)]
    """Words or phrases, compared without case at word boundaries."""
    mode: Literal["any", "all", "none"] = "any"
    """1 if any, all or none of the words occur, else 0."""
    enough: Annotated[Int32, Field(ge=1, le=1000)] | None = None
    """So many occurrences, of whichever words, make 1, and fewer their share; 1 if unset."""


class RegexReward(Model):
    pattern: Annotated[str, Field(min_length=1, max_length=2048)]
    """Python regular expression; 1 if it is found anywhere in the completion, else 0."""


class FormatReward(Model):
    template: Annotated[str, Field(min_length=1, max_length=2048)]
    """Literal text with `...` for anything, or nothing, in between; 1 if the whole completion, without white space
    around it, has this form, else 0."""


class JsonSchemaReward(Model):
    schema_: Annotated[str, Field(alias="schema", min_length=2, max_length=16384)]
    """JSON schema as a JSON string, without references to other documents; 1 if the whole completion is JSON that
    satisfies it, else 0."""


RESERVED_COLUMNS = (
    "prompt", "prompts", "completion", "completions", "completion_ids", "messages", "chosen", "rejected", "image",
    "images", "chat_template_kwargs",
)  # fmt: skip
"""What TRL takes for its own input or passes itself: no reward gets a column of the rows by these names."""


class ComparedColumn(Model):
    rules: ClassVar = (
        Rule(
            f"!(self.column in {list(RESERVED_COLUMNS)})",
            f"TRL keeps {', '.join(RESERVED_COLUMNS[:-1])} and {RESERVED_COLUMNS[-1]} for itself: give the column"
            " another name by dataset.columns, like {answer: completion}",
            lambda self: self.column not in RESERVED_COLUMNS,
            "column",
        ),
    )


class SimilarityReward(ComparedColumn):
    column: Annotated[str, Field(min_length=1, max_length=200)]
    """Column with the reference text; the reward is the F1 of the words (runs of letters and digits, whatever their
    case) that both share, each as often as it is in both."""


class AccuracyReward(ComparedColumn):
    column: Annotated[str, Field(min_length=1, max_length=200)]
    """Column with the right answer; 1 if the stripped completion is the stripped answer, else 0."""
    numeric: bool = False
    """Compare numbers instead, by math-verify: the one in <answer>, in \\boxed{} or announced as the answer, else the
    last one; 1/2 is 0.5, and 50% is both 50 and 0.5."""
    latex: bool = False
    """Compare formulas instead, by math-verify: the completion's is in \\boxed{} or announced as the answer (the answer
    is $x$), the answer's may be bare. With numeric too, a formula comes first, then a number."""


class SoftOverlongReward(Model):
    cache: Annotated[Int32, Field(ge=1)]
    """Tokens before generation.maxCompletionLength: 0 for a completion that ends before them, then falling linearly to
    -1 at maxCompletionLength (DAPO, eq. 13)."""


class PythonReward(Model):
    config_map: ConfigMapKey
    """ConfigMap key with the module's source."""
    function: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Called as f(prompts, completions, **columns) in a process of its own; returns for each completion a number,
    or None where it does not judge it: that reward is left out for that completion."""
    timeout_seconds: Annotated[Int32, Field(ge=1, le=3600)] = 60
    """Time limit of one call."""


MIN_ACCURACY = 0.6
"""Of a reward model on its held-out pairs, where rewardModel.minAccuracy is unset."""


class RewardJobRef(Model):
    name: Name
    """Name of a RewardJob in the job's namespace."""


class RewardModelSource(Model):
    """A sequence classification model with one label: exactly one of `hub` and `volume`."""

    rules: ClassVar = (
        Rule(
            "has(self.hub) != has(self.volume)",
            "give exactly one of hub, volume",
            lambda self: (self.hub is None) != (self.volume is None),
        ),
    )

    hub: HubModel | None = None
    """Repository on the Hugging Face hub."""
    volume: Volume | None = None
    """Folder in a claim."""


class RewardModelReward(Model):
    """Either `fromJob`, the model of a RewardJob, which must have reached `minAccuracy`, or `source`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel("has(self.fromJob) != has(self.source)", "give exactly one of fromJob, source"),
                cel(
                    "!has(self.source) || !(has(self.minAccuracy) || has(self.acknowledgeUnvalidated))",
                    "minAccuracy and acknowledgeUnvalidated go with fromJob",
                ),
            ]
        }
    )

    from_job: RewardJobRef | None = None
    """The model of a RewardJob; this job waits until that one has succeeded."""
    source: RewardModelSource | None = None
    """A model that is there already."""
    min_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least accuracy of the RewardJob's model on its held-out pairs; 0.6 if unset. Below it this job fails
    (RewardModelNotValidated): a policy learns what a bad reward model gets wrong."""
    acknowledge_unvalidated: bool | None = None
    """Use the RewardJob's model whatever its accuracy, or without one; false if unset."""

    @property
    def least_accuracy(self) -> float | None:
        """The accuracy that the RewardJob's model must have; None: whatever it has."""
        if self.acknowledge_unvalidated:
            return None
        return MIN_ACCURACY if self.min_accuracy is None else self.min_accuracy

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        exactly_one(self, ("from_job", "source"), "rewardModel")
        if self.source is not None and (self.min_accuracy is not None or self.acknowledge_unvalidated is not None):
            raise ValueError("rewardModel: minAccuracy and acknowledgeUnvalidated go with fromJob")
        return self


class HttpReward(Model):
    url: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            pattern=r"^(https://[!-?A-~]+|http://[a-z0-9.-]+\.svc(\.cluster\.local)?(:[0-9]+)?(/[!-?A-~]*)?)$",
        ),
    ]
    """https, or http inside the cluster. It gets {prompts, completions, columns} and answers {rewards: [...]}:
    for each completion a number, or null where it does not judge it."""
    timeout_seconds: Annotated[Int32, Field(ge=1, le=600)] = 30
    """Time limit of one request; without an answer, or with 429 or 5xx, it is tried three times."""
    secret_ref: SecretKeyRef | None = None
    """Secret with a token that is sent as Authorization: Bearer."""


def token_variable(reward: str) -> str:
    """Return the environment variable that has the token of an http reward of this name."""
    return f"TRL_REWARD_{reward.upper().replace('-', '_')}_TOKEN"


REWARD_TYPES = (
    "length",
    "keyword",
    "regex",
    "format",
    "json_schema",
    "similarity",
    "accuracy",
    "soft_overlong",
    "python",
    "reward_model",
    "http",
)


class RewardFunction(Model):
    """One reward: exactly one of length, keyword, regex, format, jsonSchema, similarity, accuracy,
    softOverlong, python, rewardModel and http."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(has(self.length)?1:0)+(has(self.keyword)?1:0)+(has(self.regex)?1:0)+(has(self.format)?1:0)"
                    "+(has(self.jsonSchema)?1:0)+(has(self.similarity)?1:0)+(has(self.accuracy)?1:0)"
                    "+(has(self.softOverlong)?1:0)+(has(self.python)?1:0)+(has(self.rewardModel)?1:0)+(has(self.http)?1:0)==1",
                    "give exactly one of length, keyword, regex, format, jsonSchema, similarity, accuracy,"
                    " softOverlong, python, rewardModel, http",
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
    soft_overlong: SoftOverlongReward | None = None
    """By how close it comes to being cut off."""
    python: PythonReward | None = None
    """By a function of your own."""
    reward_model: RewardModelReward | None = None
    """By a trained reward model."""
    http: HttpReward | None = None
    """By a service."""

    @model_validator(mode="after")
    def _one_type(self) -> Self:
        exactly_one(self, REWARD_TYPES, "grpo.rewards")
        return self


RewardPreset = Literal["customer-service"]


def _words(name: str, weight: float, words: str, **more: Any) -> RewardFunction:
    return RewardFunction(name=name, weight=weight, keyword=KeywordReward(words=words.split(", "), **more))


PRESETS: dict[RewardPreset, list[RewardFunction]] = {
    "customer-service": [
        _words(
            "empathy",
            0.25,
            "understand, sorry, apologize, apologise, apologies, frustrating, concern, worry, appreciate, thank you,"
            " thanks, welcome, glad, happy to",
            enough=2,
        ),
        _words(
            "action",
            0.25,
            "i will, i'll, we will, we'll, let me, you can, here is, here's, try, please, suggest, recommend, solution,"
            " step, steps, first, then, next",
            enough=3,
        ),
        _words(
            "courtesy",
            0.125,
            "please, thank you, thanks, may i, would you, could you, certainly, of course, happy to, glad to, assist,"
            " assistance, help, resolve",
            enough=2,
        ),
        _words(
            "no-slang",
            0.125,
            "whatever, dunno, idk, lol, omg, wtf, stupid, dumb, sucks, hate, annoying, not my problem",
            mode="none",
        ),
        RewardFunction(name="length", weight=0.1, length=LengthReward(min=50, max=200)),
    ],
}
"""Rewards that grpo.rewardPreset stands for."""
