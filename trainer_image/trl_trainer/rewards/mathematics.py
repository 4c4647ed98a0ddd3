"""The accuracy reward's numbers and formulas."""

from pathlib import Path
from typing import Any

from trl_contract.rewards import AccuracyReward
from trl_trainer.errors import TrainerError
from trl_trainer.rewards import builtin
from trl_trainer.rewards.python import PythonScorer
from trl_trainer.rewards.score import Batch, Score, in_column

FORMULAS = Path(__file__).with_name("formulas.py")

SECONDS = 10
"""Time limit of one completion: more than parsing and comparing take where signals help."""


class MathScorer(PythonScorer):
    """1 where the completion says what the answer says (numbers, formulas), else 0: also where comparing them does not
    end, or ends its process."""

    def __init__(self, given: AccuracyReward) -> None:
        super().__init__(str(FORMULAS), "equal", SECONDS)
        self._given = given

    def __call__(self, batch: Batch) -> list[Score]:
        return [self._one(*pair) for pair in zip(batch.texts, in_column(batch, self._given.column), strict=True)]

    def _one(self, text: str, answer: Any) -> Score:
        try:
            wanted = builtin.answer(self._given, answer)
        except ValueError as error:
            return str(error)
        # Outside of what is forgiven: a process that cannot start would make all rewards 0.
        self.wait_until_ready()
        columns: dict[str, list[Any]] = {
            "answer": [wanted],
            "numeric": [self._given.numeric],
            "latex": [self._given.latex],
        }
        try:
            return super().__call__(Batch([""], [text], columns))[0]
        except TrainerError:
            return 0.0
