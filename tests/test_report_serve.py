"""The served page: its files alone, events when results change, and whoever has no business there."""

from __future__ import annotations

import html
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_fixtures as fixtures

from rgpo.report.cli import main, parse
from rgpo.report.page import watch
from rgpo.report.page.serve import Server, is_loopback, serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    out = tmp_path / "report"
    (out / "tables").mkdir(parents=True)
    (out / "index.html").write_text("<p>page")
    (out / "tables/runs.csv").write_text("a,b")
    (out / ".hidden").write_text("secret")
    (tmp_path / "secret").write_text("secret")
    (out / "link").symlink_to(tmp_path / "secret")
    made = Server("127.0.0.1", 0, out, "")
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.end()
    thread.join()


def get(server: Server, path: str, host: str = "") -> tuple[int, str]:
    """Status and body of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_page_and_its_files_are_served_and_nothing_else(server: Server) -> None:
    assert get(server, "/") == (200, "<p>page") and get(server, "/tables/runs.csv") == (200, "a,b")
    for path in ("/../secret", "/%2e%2e/secret", "/link", "/.hidden", "/tables", "/%00", "//etc/passwd", "/nothing"):
        assert get(server, path)[0] == 404, path


def test_a_foreign_name_is_refused(server: Server) -> None:
    """A page elsewhere may let its name point here: the browser then sends that name."""
    assert get(server, "/", host="evil.example")[0] == 403 and get(server, "/", host="localhost:1")[0] == 200


def test_a_token_is_required_where_there_is_one(server: Server) -> None:
    server.token = "abc"
    assert server.address.endswith("/?token=abc")
    assert get(server, "/")[0] == get(server, "/?token=abd")[0] == get(server, "/events")[0] == 403
    assert get(server, "/?token=abc", host="machine.example")[0] == 200
    assert is_loopback("127.0.0.1") and is_loopback("::1") and not is_loopback("192.0.2.7") and not is_loopback("::")


def test_an_event_for_each_report(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream" and answer.readline() == b": connected\n"
    assert answer.readline() == b"\n"
    server.announce()
    assert answer.readline() == b"event: report\n" and answer.readline() == b"data: 1\n"


def test_a_port_in_use_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve=true", f"port={port}"]) == 2
    error = capsys.readouterr().err
    assert f"port={port}: cannot be used on 127.0.0.1 (Address already in use); give another" in error and error.count("\n") == 1


def test_the_live_page_listens_to_its_server_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", pause)
    fixtures.write_run(here / "results", iterations=5)
    said: list[str] = []
    settings = parse(["serve=true", "port=0", "host=127.0.0.1"])[0]
    assert serve(settings, lambda: 1, said.append) == 1 and said[0].startswith("http://127.0.0.1:")
    assert main(["figures=[]", "serve=true", "port=0"]) == 0
    page = html.unescape((here / "report/index.html").read_text())
    assert "connect-src 'self'" in page and "serve=true" not in page
    assert fixtures.page_data(here / "report/index.html")["live"] is True
