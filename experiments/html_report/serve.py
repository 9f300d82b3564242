"""Serves the page to a browser on this machine, anew for each visit, so that it follows runs that are training."""

from __future__ import annotations

import html
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from agents.files import DamagedFile
from experiments.errors import FlagError
from experiments.html_report.page import render
from experiments.html_report.runs import read_runs
from textenv.data import printable

HOST = "127.0.0.1"
SECONDS = 20  # between reloads while a run trains


class PageServer(HTTPServer):
    """Serves the page of some runs at `/`, and nothing else.

    Args:
        folders: of the runs.
        port: 0 chooses a free one, see `server_port`.

    Raises:
        FlagError: the port is in use.
    """

    def __init__(self, folders: Sequence[Path], port: int) -> None:
        self.folders = folders
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise FlagError(f"--port {port} cannot be served: {error.strerror}.") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def page(self) -> str:
        """The page now; it reloads itself while a run has not finished."""
        try:
            runs = read_runs(self.folders)
        except (FlagError, DamagedFile) as error:  # not evaluated yet, or in the middle of a change
            reload = f'<meta http-equiv="refresh" content="{SECONDS}">'
            return f"<!doctype html><meta charset=utf-8>{reload}<p>{html.escape(printable(error))}</p>"
        return render(runs, None if all(run.finished for run in runs.all) else SECONDS)


class Handler(BaseHTTPRequestHandler):
    """Answers a request for the page."""

    server: PageServer

    def do_GET(self) -> None:
        """Sends the page. Other names of this host are refused: pages of others could read it under theirs."""
        if self.headers.get("Host", "") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            content = self.server.page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing about requests."""
