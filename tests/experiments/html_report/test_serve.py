"""`report --serve`: the page over HTTP, of this machine alone, anew while a run trains."""

from __future__ import annotations

import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.errors import FlagError
from experiments.html_report.page import render
from experiments.html_report.runs import read_runs
from experiments.html_report.serve import HOST, SECONDS, PageServer


@pytest.fixture
def server(comparison: Path, tmp_path: Path) -> Iterator[PageServer]:
    """Serves a copy of the comparison."""
    shutil.copytree(comparison, tmp_path / "run")
    with PageServer([tmp_path / "run"], 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(url: str, host: str | None = None) -> str:
    """The body of an answer."""
    request = urllib.request.Request(url, headers={} if host is None else {"Host": host})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_the_page_follows_the_run(server: PageServer) -> None:
    """What is served is what `render` returns now; it reloads itself until all runs have finished."""
    folder = server.folders[0]
    assert get(server.url) == render(read_runs([folder])) and '"reload": null' in get(server.url)
    (folder / "ppo/seed-0/summary.json").unlink()
    assert f'"reload": {SECONDS}' in get(server.url)
    shutil.rmtree(folder)
    assert "holds no run" in get(server.url) and 'http-equiv="refresh"' in get(server.url)


def test_nothing_else_is_served(server: PageServer, tmp_path: Path) -> None:
    """No other path, and not to a page that reaches this machine under a name of its own; the port must be free."""
    for path, host, code in (("config.json", None, 404), ("../run/config.json", None, 404), ("", "evil.example", 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server.url + path, host)
        assert refused.value.code == code
    assert server.server_address[0] == HOST
    with pytest.raises(FlagError, match="--port"):
        PageServer([tmp_path], server.server_port)
