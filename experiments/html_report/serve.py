"""Serves the page to a browser on this machine, anew for each visit, so that it follows runs that are training."""

from __future__ import annotations

import html
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agents.files import DamagedFile
from experiments.errors import FlagError
from experiments.html_report.page import PAGE, render
from experiments.html_report.runs import NotEvaluated, read_runs
from textenv.data import printable

HOST = "127.0.0.1"
SECONDS = 20  # between reloads while a run trains
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # what a page cannot say itself; the rest is in it
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Serves the page of some runs at `/` and `/report.html`, and nothing else.

    Each connection has a thread of its own.

    Args:
        folders: of the runs.
        port: 0 chooses a free one, see `server_port`.

    Raises:
        FlagError: the port is in use.
    """

    def __init__(self, folders: Sequence[Path], port: int) -> None:
        self.folders, self.lock = folders, threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise FlagError(f"--port {port} cannot be served: {error.strerror}.") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def page(self) -> str:
        """The page now; it reloads itself while a run has not finished. One thread at a time draws it."""
        with self.lock:
            try:
                runs = read_runs(self.folders)
            except (FlagError, DamagedFile) as error:
                # not evaluated yet, or in the middle of a change; what else is refused stays so
                return _note(error, reload=isinstance(error, NotEvaluated | DamagedFile))
            return render(runs, None if all(run.finished for run in runs.all) else SECONDS)

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints an error, unless it is that the browser has gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _note(error: Exception, *, reload: bool) -> str:
    """A page with a sentence."""
    policy = (
        "<meta http-equiv=content-security-policy content=\"default-src 'none'; base-uri 'none'; form-action 'none'\">"
    )
    again = f'<meta http-equiv="refresh" content="{SECONDS}">' if reload else ""
    return f"<!doctype html><meta charset=utf-8>{policy}{again}<p>{html.escape(printable(error))}</p>"


class Handler(BaseHTTPRequestHandler):
    """Answers a request for the page."""

    server: PageServer
    timeout = 10  # seconds without a word of the browser, then its connection is closed

    def do_GET(self) -> None:
        """Sends the page, whatever the query.

        Other names of this host are refused: pages of others could read it under theirs.
        """
        if self.headers.get("Host", "") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self.send_error(403)
        elif self.path.partition("?")[0] not in ("/", f"/{PAGE}"):
            self.send_error(404)
        else:
            content = self.server.page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def do_HEAD(self) -> None:
        """Sends what GET sends, without the page itself."""
        self.do_GET()

    def end_headers(self) -> None:
        """Adds the headers of every answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing about requests."""
