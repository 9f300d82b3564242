"""`report --serve`: the page over HTTP, of this machine alone, anew while a run trains."""

from __future__ import annotations

import http.client
import shutil
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.errors import FlagError
from experiments.html_report import PAGE, ReportConfig, report_runs
from experiments.html_report.page import render
from experiments.html_report.runs import read_runs
from experiments.html_report.serve import HOST, SECONDS, Handler, PageServer
from tests.helpers.commands import call


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


def get(url: str, host: str | None = None, method: str = "GET") -> str:
    """The body of an answer, which has the headers of every answer."""
    request = urllib.request.Request(url, headers={} if host is None else {"Host": host}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        return str(answer.read().decode())


def test_the_page_follows_the_run(server: PageServer) -> None:
    """What is served is what `render` returns now; it reloads itself until all runs have finished."""
    folder = server.folders[0]
    assert get(server.url) == render(read_runs([folder])) and '"reload": null' in get(server.url)
    (folder / "ppo/seed-0/summary.json").unlink()
    assert f'"reload": {SECONDS}' in get(server.url)
    for path in folder.rglob("metrics.jsonl"):
        path.write_text("")
    early = get(server.url)
    assert "not evaluated yet" not in early and "no run that was evaluated yet" in early
    assert 'http-equiv="refresh"' in early and "default-src 'none'; base-uri 'none'; form-action 'none'" in early
    shutil.rmtree(folder)
    assert "holds no run" in get(server.url) and 'http-equiv="refresh"' not in get(server.url)


def test_nothing_else_is_served(server: PageServer, tmp_path: Path) -> None:
    """No other path or method, and not to a page that reaches this machine under a name of its own."""
    port = server.server_port
    for path, host, code in (
        *(("config.json", None, 404), ("../run/config.json", None, 404)),
        *(("?x/../config.json", "evil.example", 403), ("report.htm", None, 404), (f"{PAGE}/config.json", None, 404)),
        *(("", "evil.example", 403), ("", f"evil.example:{port}", 403), ("", f"{HOST}:{port + 1}", 403)),
        *(("", HOST, 403), ("", f"localhost.evil.example:{port}", 403)),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server.url + path, host)
        assert refused.value.code == code and refused.value.headers["X-Content-Type-Options"] == "nosniff"
    for method in ("POST", "PUT"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server.url, method=method)
        assert refused.value.code == 501
    assert "<title>" in get(server.url, f"localhost:{port}")  # control
    for path in (PAGE, "?x=1", f"{PAGE}?config.json"):  # control: the page, whatever the query
        assert get(server.url + path) == get(server.url)
    assert server.server_address[0] == HOST
    with pytest.raises(FlagError, match="--port"):
        PageServer([tmp_path], server.server_port)


def test_a_health_check_gets_the_headers_alone(server: PageServer) -> None:
    """HEAD is answered as GET is, refusals too, without the page."""
    for path, host, code in (("/", None, 200), ("/config.json", None, 404), ("/", "evil.example", 403)):
        lengths = []
        for method in ("HEAD", "GET"):
            connection = http.client.HTTPConnection(HOST, server.server_port, timeout=60)
            connection.request(method, path, headers={} if host is None else {"Host": host})
            answer = connection.getresponse()
            assert answer.status == code
            lengths.append(int(answer.headers["Content-Length"]))
            assert (answer.read() == b"") == (method == "HEAD")
            connection.close()
        assert lengths[0] == lengths[1] > 0


def test_a_browser_that_says_nothing_keeps_nobody_waiting(
    server: PageServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An idle connection, and one that ends in the middle of an answer, which is no error to print."""
    monkeypatch.setattr(Handler, "timeout", 0.5)
    with socket.create_connection((HOST, server.server_port)) as idle:
        started = time.monotonic()
        assert "<title>" in get(server.url)
        idle.settimeout(30)
        assert idle.recv(1) == b""  # the server closes it
        assert time.monotonic() - started < 30
    gone = socket.create_connection((HOST, server.server_port))
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an orderly end
    gone.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{server.server_port}\r\n\r\n".encode())
    gone.close()
    assert "<title>" in get(server.url)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(server, "page", lambda: 1 / 0)  # control: another error is printed
    with pytest.raises((http.client.HTTPException, OSError)):
        get(server.url)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_cannot_be_served_is_refused_at_once(comparison: Path, tmp_path: Path) -> None:
    """A folder without a run, a run that is named twice; a file to write."""
    for runs, message in (
        ([str(tmp_path)], "holds no run"),
        ([str(comparison), str(comparison / "ppo" / "seed-0")], "named once"),
    ):
        done = call("report", *runs, "--serve", "--port", "0")
        assert done.returncode == 2 and message in done.stderr
    done = call("report", str(comparison), "--serve", "--out", str(tmp_path / "page.html"))
    assert done.returncode == 2 and "--out names a file, and --serve writes none" in done.stderr


def test_serving_ends_without_writing(comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was not evaluated yet is served; afterwards its folder holds no page."""
    folder = tmp_path / "run"
    shutil.copytree(comparison / "ppo" / "seed-0", folder)
    (folder / "metrics.jsonl").write_text("")
    served = []
    monkeypatch.setattr(PageServer, "serve_forever", lambda self: served.append(self.page()))
    report_runs(ReportConfig([folder], serve=True, port=0))
    assert "no run that was evaluated yet" in served[0] and not (folder / PAGE).exists()
