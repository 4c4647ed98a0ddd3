"""Failures with a known reason: what is raised anywhere in the trainer and ends up in the exit record."""

from trl_contract.report import FailureReason


class TrainerError(Exception):
    """Ends the attempt with `reason`; the message says what happened and, where there is one, the remedy. `log` is what
    another process said about it: it follows the traceback."""

    def __init__(self, reason: FailureReason, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
        if log:
            self.add_note(log)
        self.reason: FailureReason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["TrainerError"], tuple[FailureReason, str]]:
        # It may come from a process of ours, and an exception remembers only what its base class was given.
        return type(self), (self.reason, self.message)


class UserError(TrainerError):
    """A mistake that the user can mend; the message names the field or file, the value and the remedy."""


class Preempted(BaseException):
    """SIGTERM arrived: not a failure. No Exception, so that no library's `except Exception` can swallow it."""
