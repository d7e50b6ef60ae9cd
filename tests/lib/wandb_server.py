"""As much of a W&B server as its library needs to open, resume and finish runs; it remembers all, and can fail."""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

NAMED = re.compile(r"(?:mutation|query)\s+(\w+)")


class WandbServer(ThreadingHTTPServer):
    """`with WandbServer() as server:` serves at `server.url` until the end of the block."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Names of GraphQL operations with their variables, in order; files as ("PUT", {"path": ..., "body": ...})."""
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        """Id of a run -> line of its history -> row. What comes for the same line again takes its place, as at W&B."""
        self.fails = False
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version: ClassVar[str] = "HTTP/1.1"  # pyright: ignore[reportIncompatibleVariableOverride]
    server: WandbServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        reply = json.dumps({} if self.server.fails else self._reply(body)).encode()
        self.send_response(500 if self.server.fails else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _reply(self, body: bytes) -> dict[str, Any]:
        if self.path != "/graphql":
            self.server.asked.append((self.command, {"path": self.path, "body": body.decode(errors="replace")}))
            if self.path.endswith("/file_stream"):
                history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
                kept = self.server.rows.setdefault(self.path.split("/")[-2], {})
                kept |= {history["offset"] + number: json.loads(row) for number, row in enumerate(history["content"])}
            return {}
        query = json.loads(body)
        operation, values = NAMED.search(query["query"]), query.get("variables") or {}
        name = operation[1] if operation else ""
        self.server.asked.append((name, values))
        if name == "RunResumeStatus":
            return {"data": _resumed(self.server.rows.get(values["name"], {}))}
        return {"data": _data(name, values.get("input", values), self.server.url)}


def _resumed(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A run learns this of itself when it is opened again; nothing where it is new."""
    bucket: dict[str, Any] = {"id": "QQ==", "name": "x", "displayName": "shown", "config": "{}", "summaryMetrics": "{}"}
    bucket |= {"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "tags": [], "wandbConfig": None}
    last = [json.dumps(rows[max(rows)])] if rows else []
    bucket |= {"historyLineCount": len(rows), "historyTail": json.dumps(last)}
    return {"model": {"id": "UA==", "name": "tests", "bucket": bucket if rows else None}}


def _data(name: str, values: dict[str, Any], url: str) -> dict[str, Any]:
    """The reply that the operation wants to read; an empty one for those that get on without."""
    if "Viewer" in name or "DefaultEntity" in name:
        return {"viewer": {"id": "VQ==", "entity": "me", "flags": "{}", "username": "me"}}
    project = {"id": "UA==", "name": values.get("project", "tests"), "entity": {"id": "RQ==", "name": "me"}}
    project["internalId"] = "UA=="
    bucket = {"id": "QQ==", "name": values.get("name"), "displayName": "shown", "description": "", "config": "{}"}
    bucket |= {"sweepName": None, "historyLineCount": 0, "project": project}
    made = {"id": "QXJ0", "state": "PENDING", "artifactSequence": {"id": "c2Vx", "latestArtifact": None}}
    stored = {"id": "RjI=", "storagePath": "x", "artifact": {"id": "QXJ0"}, "uploadMultipartUrls": None}
    edges = [{"node": stored | _file(file["name"], url)} for file in values.get("artifactFiles", [])]
    sequence = {"name": "pairs", "project": project, "id": "c2Vx", "__typename": "ArtifactSequence"}
    known = {"id": "QXJ0", "artifactSequence": sequence, "artifactType": {"name": "pairs"}, "state": "COMMITTED"}
    known |= {"tags": [], "aliases": [], "digest": "x", "createdAt": "2026-01-01", "ttlIsInherited": False}
    known |= dict.fromkeys(("versionIndex", "ttlDurationSeconds", "size", "fileCount"), 0)
    known |= dict.fromkeys(("description", "metadata", "historyStep", "commitHash", "updatedAt"))
    manifest = {"id": "TTE=", "file": {"id": "RjE="} | _file("manifest", url)}
    files = [_file(file, url) for file in values.get("files", [])]
    replies: dict[str, dict[str, Any]] = {
        "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
        "CreateArtifact": {"createArtifact": {"artifact": made}},
        "CreateArtifactManifest": {"createArtifactManifest": {"artifactManifest": manifest}},
        "CreateArtifactFiles": {"createArtifactFiles": {"files": {"edges": edges}}},
        "CommitArtifact": {"commitArtifact": {"artifact": {"id": "QXJ0", "digest": "x"}}},
        "CreateRunFiles": {"createRunFiles": {"runID": "QQ==", "files": files, "uploadHeaders": []}},
        **{"ArtifactType": {"project": None}, "ArtifactByID": {"artifact": known}},
    }
    return replies.get(name, {})


def _file(name: str, url: str) -> dict[str, Any]:
    return {"name": name, "displayName": name, "uploadUrl": f"{url}/up/{name}", "uploadHeaders": []}
