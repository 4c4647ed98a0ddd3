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


_NETWORK = frozenset(
    {"ConnectionError", "gaierror", "TransportError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "CommError"}
)
"""Classes whose instances say that a network does not answer: Python's and requests' own, httpx's (and that of its copy
in huggingface_hub), huggingface_hub's two (the file is not in the cache either) and W&B's."""
_NO_NETWORK = frozenset({"BrokenPipeError", "AuthenticationError", "RemoteDisconnected"})
"""Subclasses of them that say something else: a process of ours has ended, W&B does not know the key, a server is there
and hangs up."""


def causes(error: BaseException) -> list[BaseException]:
    """Return the exception, what it was raised from, and so on."""
    found: list[BaseException] = []
    while error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__ or error
    return found


def is_network(error: BaseException) -> bool:
    """Return whether an exception says that a network does not answer, or a server that it is busy or broken: it may
    pass. By the names of classes, so that no library has to be here."""
    silent = False
    for cause in causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return bool(status in (408, 429) or status >= 500)
        names = {kind.__name__ for kind in type(cause).__mro__}
        silent |= bool(names & _NETWORK) and not names & _NO_NETWORK
    return silent
