"""Serve the report on a local port and rebuild it when results change; open pages are notified by server-sent events."""

from __future__ import annotations

import hmac
import ipaddress
import mimetypes
import secrets
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from rgpo.errors import ConfigError
from rgpo.report.page.watch import watch
from rgpo.report.settings import Settings

HEARTBEAT_S = 15.0  # interval between comments sent to a listening page, so that a lost connection is noticed
MAX_LISTENERS = 32


class Server(ThreadingHTTPServer):
    """Serves the files in a folder, and an event for every new report."""

    daemon_threads = True

    def __init__(self, host: str, port: int, out: Path, token: str) -> None:
        self.out, self.token = out.resolve(), token
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.renewed = threading.Condition()
        self.num_reports, self.num_listeners, self.ended = 0, 0, False
        super().__init__((host, port), Handler)

    @property
    def address(self) -> str:
        """The page's address, including the token if there is one."""
        host, port = self.server_address[0], self.server_address[1]
        name = str(host, "ascii") if isinstance(host, bytes) else host
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/{f'?token={self.token}' if self.token else ''}"

    def announce(self) -> None:
        """Notify all listening pages of a new report."""
        with self.renewed:
            self.num_reports += 1
            self.renewed.notify_all()

    def wait(self, seen: int) -> bool:
        """Wait up to HEARTBEAT_S for a report after the first `seen`; returns True if there is one."""
        with self.renewed:
            self.renewed.wait_for(lambda: self.ended or self.num_reports > seen, HEARTBEAT_S)
            return self.num_reports > seen

    def end(self) -> None:
        """Stop the server and let the threads of open pages return."""
        with self.renewed:
            self.ended = True
            self.renewed.notify_all()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Handles GET requests for the page, files next to it, and events; all others are rejected."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rgpo", ""

    def do_GET(self) -> None:
        """Handle a GET request."""
        parts = urlsplit(self.path)
        if not self._allowed(parse_qs(parts.query).get("token", [""])[0]):
            self._answer(403, b"the address needs the token that rgpo-report printed", "text/plain")
        elif parts.path == "/events":
            self._events()
        else:
            self._file(unquote(parts.path).lstrip("/") or "index.html")

    def _allowed(self, token: str) -> bool:
        """Check the token or, without one, that the host is a loopback name, since any other may be a foreign page's."""
        if self.server.token:
            return hmac.compare_digest(token.encode(), self.server.token.encode())
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return name == "localhost" or is_loopback(name)

    def _file(self, name: str) -> None:
        try:
            path = (self.server.out / name).resolve()
            inside = path.is_relative_to(self.server.out) and path.is_file() and not path.name.startswith(".")
            content = path.read_bytes() if inside else None
        except (OSError, ValueError):  # a name with a null byte, or a file that was just replaced
            content = None
        if content is None:
            waits = name == "index.html"
            self._answer(503 if waits else 404, b"no report yet; try again" if waits else b"no such file", "text/plain")
            return
        self._answer(200, content, mimetypes.guess_type(path.name)[0] or "application/octet-stream")

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(content)

    def _events(self) -> None:
        """Send one event per report until the page disconnects."""
        with self.server.renewed:
            full = self.server.num_listeners >= MAX_LISTENERS
            self.server.num_listeners += not full
        if full:
            self._answer(503, b"too many pages listen", "text/plain")
            return
        self.close_connection = True
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Connection", "close")
            self.end_headers()
            seen = self.server.num_reports
            self.wfile.write(b": connected\n\n")
            while not self.server.ended:
                new = self.server.wait(seen)
                seen = self.server.num_reports if new else seen
                self.wfile.write(b"event: report\ndata: %d\n\n" % seen if new else b": waiting\n\n")
        except OSError:  # the page has disconnected
            return
        finally:
            with self.server.renewed:
                self.server.num_listeners -= 1

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests, which would bury the report's own messages."""


def is_loopback(host: str) -> bool:
    """True for an address that is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(settings: Settings, report: Callable[[], int], show: Callable[[str], None]) -> int:
    """Serve the page and call report(), now and whenever results change, until Ctrl-C; returns its last exit code.

    show: called once with the address. If other machines can reach the host, the address includes a token.

    Raises: ConfigError if the port is in use, or if the host is not this machine's.
    """
    token = "" if is_loopback(settings.host) else secrets.token_urlsafe(16)
    try:
        server = Server(settings.host, settings.port, Path(settings.out), token)
    except OSError as error:
        remedy = "give another, or port=0 for any that is free; host= is 127.0.0.1 for this machine alone"
        raise ConfigError(f"port={settings.port}: cannot be used on {settings.host} ({error.strerror}); {remedy}") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    show(server.address)

    def renew() -> int:
        code = report()
        server.announce()
        return code

    try:
        return watch(settings, renew)
    finally:
        server.end()
        thread.join()
