"""Errors that cross module borders."""


class ApiError(Exception):
    """The API server refused or could not be reached (status 0); the work is repeated with backoff."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0, request: str = "") -> None:
        """`message` are the server's own words, `request` is what was asked for."""
        words = f"{request}: {message}" if request else message
        super().__init__(f"{status}: {words}" if status else words)
        self.status = status
        self.message = message
        self.request = request
        self.retry_after = retry_after
        """Seconds that the API server asks to wait."""

    @property
    def final(self) -> bool:
        """Whether the same request would be refused again: 4xx, but for a conflict and for too many requests."""
        return 400 <= self.status < 500 and self.status not in (409, 429)


class Refused(ApiError):
    """The API server did not create something that an attempt needs."""

    def __init__(self, what: str, error: ApiError) -> None:
        super().__init__(error.status, error.message, error.retry_after, error.request)
        self.what = what
        """Its kind and name."""


class LeaseLost(Exception):
    """Another replica may lead: nothing more may be written."""
