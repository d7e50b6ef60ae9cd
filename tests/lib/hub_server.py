"""A server that speaks as much of the hub's protocol as an upload needs, for a machine without a login."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

TOKEN = "hf_ofNobodyAtAll0123456789"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no login and no network but those of a test."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


class Server(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as an upload of small files needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {}
        self.public: set[str] = set()
        self.commits = 0
        self.tokens: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: bytes) -> Any:
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo not in self.files and asked["visibility"] != "private":
                self.public.add(repo)
            self.files.setdefault(repo, {})
            return {"url": f"{self.address}/{repo}"}
        if "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return {"files": [file | {"shouldIgnore": False, "oid": self.blob(repo, file["path"])} for file in files]}
        if "/commit/" in path:
            self.commits += 1
            for row in map(json.loads, body.splitlines()[1:]):
                name = row["value"]["path"]
                if row["key"] == "deletedFile":
                    del self.files[repo][name]
                else:
                    self.files[repo][name] = base64.b64decode(row["value"]["content"])
            return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}/{repo}/commit/0"}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.files[repo]]
        return {"id": repo, "private": repo not in self.public, "sha": "0" * 40, "siblings": []}

    def blob(self, repo: str, name: str) -> str | None:
        """Return git's hash of a file, by which the client sees that it has not changed."""
        content = self.files[repo].get(name)
        return None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization") or "")
        text = json.dumps(self.server.answer(self.path.partition("?")[0], body)).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()
