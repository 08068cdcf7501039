"""A real HTTP server on loopback that gives the files of a directory, and misbehaves where it is told to."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

_PREFIX = re.compile(r"^/(data|datasets/org/name/resolve/main)/")
"""Of a plain server, and of a repository on a model hub."""
_TREE = "/api/datasets/org/name/tree/main"

Fault = Literal["500", "403", "reset", "cut", "stall", "wrong"]
"""`cut`: half of the body and the end. `stall`: half of the body, then silence. `wrong`: the first byte is another."""


class FileServer:
    """What is served, how, and what was asked for.

    Args:
        directory: whose files are given.
        ranges: whether parts of files are given; a plain server gives the whole file.
    """

    def __init__(self, directory: Path, *, ranges: bool = True) -> None:
        self.directory = directory
        self.ranges = ranges
        self.faults: dict[str, list[Fault]] = {}
        """By file name: what goes wrong with the next answers; a last one of `always` stays."""
        self.always: dict[str, Fault] = {}
        self.delay = 0.0
        """Seconds before each answer."""
        self.silent: set[str] = set()
        """Files that are never answered for."""
        self.sent: Counter[str] = Counter()
        """Bytes given of each file, by name."""
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def fault(self, name: str) -> Fault | None:
        with self._lock:
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting else self.always.get(name)

    def begin(self, change: int) -> None:
        with self._lock:
            self._at_once += change
            self.most_at_once = max(self.most_at_once, self._at_once)

    def count(self, name: str, sent: int) -> None:
        with self._lock:
            self.sent[name] += sent

    @property
    def shards(self) -> dict[str, int]:
        """Bytes given of each shard."""
        return {name: sent for name, sent in self.sent.items() if name.endswith(".tar")}


@contextmanager
def serving(directory: Path, *, ranges: bool = True) -> Iterator[FileServer]:
    files = FileServer(directory, ranges=ranges)
    handler = type("Handler", (_Handler,), {"files": files})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_port}/data"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nothing to print, least of all into the midst of another test's output."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    files: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.files.begin(1)
        try:
            self._answer()
        finally:
            self.files.begin(-1)

    def _answer(self) -> None:
        if self.path.startswith(_TREE):
            self._list(unquote(self.path).removeprefix(_TREE).partition("?")[0].strip("/"))
            return
        if self.path.startswith("/api/"):
            self._tell({"id": "org/name", "sha": "0" * 40, "siblings": []})
            return
        path = self.files.directory / _PREFIX.sub("", unquote(self.path))
        fault = self.files.fault(path.name)
        time.sleep(100 if path.name in self.files.silent else self.files.delay)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if fault in ("500", "403") or not path.is_file():
            self.send_response(int(fault or 404) if fault in ("500", "403") else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._body(path, fault)

    def _list(self, folder: str) -> None:
        found = []
        here = self.files.directory / folder
        for path in sorted(here.iterdir()) if here.is_dir() else ():
            facts = {"path": str(path.relative_to(self.files.directory)), "oid": "0" * 40}
            found.append({**facts, "type": "directory" if path.is_dir() else "file", "size": path.stat().st_size})
        self._tell(found)

    def _tell(self, facts: object) -> None:
        body = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self, path: Path, fault: Fault | None) -> None:
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = self.files.ranges and asked is not None
        if part:
            assert asked is not None
            start = int(asked[1])
            body = data[start : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
        else:
            body = data
            self.send_response(200)
        if fault == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body[: len(body) // 2] if fault in ("cut", "stall") else body
        self.wfile.write(sent)
        self.wfile.flush()
        self.files.count(path.name, len(sent))
        if fault == "stall":
            time.sleep(3)
        if fault in ("cut", "stall"):
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass
