"""The rewards of a GRPOJob as the functions that TRL calls, once per rank on that rank's completions."""

import math
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from trl.rewards import get_soft_overlong_punishment

from trl_contract.jobfile import JobFile
from trl_contract.report import FailureReason, RewardReport
from trl_contract.rewards import RewardFunction, token_variable
from trl_contract.spec import GRPOSpec
from trl_trainer.errors import TrainerError, UserError
from trl_trainer.launch.network import with_token
from trl_trainer.models import source
from trl_trainer.rewards import builtin
from trl_trainer.rewards.geometric_mean import GeometricMean
from trl_trainer.rewards.http import HttpScorer
from trl_trainer.rewards.mathematics import MathScorer
from trl_trainer.rewards.python import PythonScorer
from trl_trainer.rewards.reward_model import RewardModelScorer
from trl_trainer.rewards.score import Batch, Completion, Score, Scorer, in_column

NOT_COLUMNS = {"completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
"""What TRL passes to reward functions beside the columns of the data."""

LARGEST = 3.4e38
"""TRL keeps rewards in fp32."""


@dataclass(frozen=True)
class Rewards:
    """All rewards of a job, in the order of grpo.rewards."""

    functions: list["Reward"]
    is_geometric: bool = False
    """Whether their geometric mean is learnt from."""

    @property
    def reward_funcs(self) -> list[Callable[..., list[float | None]]]:
        """What TRL gets as reward_funcs; the geometric mean, if any, comes last."""
        if not self.is_geometric:
            return [*self.functions]
        return [*self.functions, GeometricMean(self.functions, [one.given.weight for one in self.functions])]

    def report(self) -> list[RewardReport]:
        """Return mean, standard deviation and errors over all ranks and all training steps of this attempt. No
        communication: the numbers have been added up at each call."""
        return [function.report() for function in self.functions]

    def try_out(self, rows: list[dict[str, Any]]) -> list[str]:
        """Score two made-up completions of each row on this rank alone; return what went wrong with rewards that have
        onError zero. Raises what goes wrong with the others; it is not counted."""
        return [text for function in self.functions for text in function.try_out(rows)]

    def close(self) -> None:
        """End the processes of Python rewards."""
        for function in self.functions:
            if isinstance(function.scorer, PythonScorer):
                function.scorer.close()


def build(job: JobFile) -> Rewards:
    """Return the rewards of a resolved job, none for a kind without; call it before init_process_group (processes start
    here, reward models are loaded). Raises UserError for a reward that can never work, whatever its onError."""
    functions = [Reward(given, _scorer(job, given)) for given in job.spec.rewards]
    spec = job.spec
    is_geometric = isinstance(spec, GRPOSpec) and spec.grpo.reward_aggregation == "geometric_mean"
    rewards = Rewards(functions, is_geometric)
    for function in functions:
        if isinstance(function.scorer, PythonScorer):
            try:
                function.scorer.wait_until_ready()
            except TrainerError as error:
                rewards.close()
                raise UserError(error.reason, f"grpo.rewards.{function.__name__}: {error}", error.log) from error
    return rewards


def _scorer(job: JobFile, given: RewardFunction) -> Scorer:
    field = f"grpo.rewards.{given.name}"
    if given.python is not None:
        return PythonScorer(job.paths.rewards[given.name], given.python.function, given.python.timeout_seconds)
    if given.http is not None:
        token = os.environ.get(token_variable(given.name))
        if given.http.secret_ref is not None and token is None:
            raise UserError("AccessDenied", f"{field}: the token of http.secretRef is not in the environment")
        return HttpScorer(given.http, token)
    if given.reward_model is not None:
        where, hub = source.reward_model(job, given)
        with with_token(job.spec, hub):
            return RewardModelScorer(where, field, job.spec.training.precision, hub.revision if hub else None)
    if given.soft_overlong is not None:
        assert isinstance(job.spec, GRPOSpec), "only it has rewards"
        return _soft_overlong(job.spec.grpo.generation.max_completion_length, given.soft_overlong.cache)
    return _built_in(given)


def _built_in(given: RewardFunction) -> Scorer:
    if given.length is not None:
        return _of_text(builtin.length(given.length))
    if given.keyword is not None:
        return _of_text(builtin.keyword(given.keyword))
    if given.regex is not None:
        return _of_text(builtin.regex(given.regex))
    if given.format is not None:
        return _of_text(builtin.format_(given.format))
    if given.json_schema is not None:
        return _of_text(builtin.json_schema(given.json_schema))
    if given.similarity is not None:
        return _compared(builtin.similarity(given.similarity), given.similarity.column)
    assert given.accuracy is not None, "a reward has exactly one type"
    if given.accuracy.numeric or given.accuracy.latex:
        return MathScorer(given.accuracy)
    return _compared(builtin.accuracy(given.accuracy), given.accuracy.column)


def _of_text(score: builtin.Text) -> Scorer:
    return lambda batch: [_attempt(score, text) for text in batch.texts]


def _compared(score: builtin.Compare, column: str) -> Scorer:
    return lambda batch: [_attempt(score, *pair) for pair in zip(batch.texts, in_column(batch, column), strict=True)]


def _soft_overlong(limit: int, cache: int) -> Scorer:
    score = get_soft_overlong_punishment(limit, cache)
    return lambda batch: list(score(batch.ids or [[] for _ in batch.completions]))


def _attempt(score: Any, *arguments: Any) -> Score:
    try:
        return float(score(*arguments))
    except (ValueError, TimeoutError) as error:
        return str(error)


class Reward:
    """One reward as a function that TRL can call; finite numbers come out, one per completion (None where the reward
    has nothing to say, which TRL leaves out of the sum), or an error on every rank at once: one rank that raised alone
    would leave the others waiting for it."""

    def __init__(self, given: RewardFunction, scorer: Scorer) -> None:
        self.__name__ = given.name
        self.given = given
        self.scorer = scorer
        self.is_counted: Callable[[], bool] = lambda: True
        """Whether a call is one of training; evaluations have other completions, and metrics of their own."""
        self.last: list[float | None] = []
        """What the last call returned."""
        self._totals = torch.zeros(4, dtype=torch.float64)
        """Of all ranks: scores, their sum, the sum of their squares, errors."""

    def __call__(self, prompts: list[Completion], completions: list[Completion], **columns: Any) -> list[float | None]:
        data = {name: values for name, values in columns.items() if name not in NOT_COLUMNS}
        scores, failure = self._score(Batch(prompts, completions, data, columns.get("completion_ids", [])))
        good = torch.tensor([score for score in scores if isinstance(score, float)], dtype=torch.float64)
        errors = sum(isinstance(score, str) for score in scores)
        totals = torch.tensor([len(good), good.sum(), good.square().sum(), errors, failure is not None])
        if dist.is_initialized():
            dist.all_reduce(totals)
        if self.is_counted():
            self._totals += totals[:4]
        if totals[4] and self.given.on_error == "fail":
            raise _first(failure)
        self.last = [0.0 if isinstance(score, str) else score for score in scores]
        return self.last

    def report(self) -> RewardReport:
        """Return mean and standard deviation of the scores (errors are counted, not averaged)."""
        count, total, squares, errors = self._totals.tolist()
        mean = total / count if count else 0.0
        deviation = math.sqrt(max(0.0, squares / count - mean * mean)) if count else 0.0
        return RewardReport(name=self.__name__, mean=f"{mean:.6g}", std=f"{deviation:.6g}", errors=round(errors))

    def try_out(self, rows: list[dict[str, Any]]) -> list[str]:
        """See Rewards.try_out."""
        prompts, completions = [], []
        for row in rows:
            for text in ("", "Yes, 42."):
                prompts.append(row["prompt"])
                talk = isinstance(row["prompt"], list)
                completions.append([{"role": "assistant", "content": text}] if talk else text)
        names = [name for name in rows[0] if name not in ("prompt", "chat_template_kwargs")]
        columns = {name: [row[name] for row in rows for _ in range(2)] for name in names}
        _, failure = self._score(Batch(prompts, completions, columns))
        if failure is not None and self.given.on_error == "fail":
            raise failure
        return [failure.message] if failure is not None else []

    def _score(self, batch: Batch) -> tuple[list[Score], TrainerError | None]:
        """Return a score or a reason per completion, and the first error."""
        number = len(batch.completions)
        reason: FailureReason = "RewardError"
        log = ""
        try:
            scores = [_finite(score) for score in self.scorer(batch)]
            if len(scores) != number:
                scores = [f"returned {len(scores)} rewards for {number} completions"] * number
        except TrainerError as error:
            reason, scores, log = error.reason, [error.message] * number, error.log
        except Exception as error:
            traceback.print_exc()
            scores = [str(error) or type(error).__name__] * number
        first = next((score for score in scores if isinstance(score, str)), None)
        return scores, None if first is None else TrainerError(reason, f"grpo.rewards.{self.__name__}: {first}", log)


def _finite(score: Score) -> Score:
    if score is None or isinstance(score, str):
        return score
    if math.isfinite(score) and abs(score) <= LARGEST:
        return float(score)
    return f"returned {score}, which is no finite number"


def _first(failure: TrainerError | None) -> TrainerError:
    """Return the failure of the lowest rank that has one, on every rank."""
    mine = None if failure is None else (failure.reason, failure.message, failure.log)
    found = [mine]
    if dist.is_initialized():
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine)
    return TrainerError(*next(one for one in found if one is not None))
