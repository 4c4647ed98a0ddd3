"""Takes the reports of a run on this machine, as the operator's receiver does in a cluster."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from trl_contract.report import Progress, ProgressReport

MAX_BYTES = 64 * 1024


class Receiver:
    """Listens on this machine while its context is open; `latest` is the newest report."""

    def __init__(self) -> None:
        self.latest: Progress | None = None
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(200 if receiver._take(self.rfile.read(self._length())) else 400)
                self.end_headers()

            def _length(self) -> int:
                return min(int(self.headers.get("Content-Length", 0)), MAX_BYTES)

            def log_message(self, format: str, *args: object) -> None:
                """The reports are shown by the bar."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/status"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, body: bytes) -> bool:
        try:
            report = ProgressReport.model_validate_json(body)
        except ValidationError:
            return False
        self.latest = report.trl or self.latest
        return True
