"""Failures with a known reason: what is raised anywhere in the trainer and ends up in the exit record."""

from trl_contract.report import FailureReason


class TrainerError(Exception):
    """Ends the attempt with `reason`; the message says what happened and, where there is one, the remedy."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason: FailureReason = reason
        self.message = message


class UserError(TrainerError):
    """A mistake that the user can mend; the message names the field or file, the value and the remedy."""


class Preempted(TrainerError):
    """SIGTERM arrived and what could be saved has been saved: not a failure."""

    def __init__(self, message: str) -> None:
        super().__init__("Preempted", message)
