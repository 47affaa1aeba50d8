"""As much of a wandb server as its client asks for: remembers every run it is sent."""

from __future__ import annotations

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeWandbServer(ThreadingHTTPServer):
    """`runs[id]` holds what was upserted (group, jobType, config, ...) and `history[id]` its lines."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.exit_code: dict[str, int] = {}
        self.unknown: list[str] = []  # queries that it has no answer for
        self.project = {"id": "1", "name": "", "entity": {"id": "1", "name": "me"}}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            return self.stream(path.split("/")[-2], body)
        query, variables = body.get("query", ""), body.get("variables") or {}
        if "upsertBucket" in query:
            self.project["name"] = variables["project"]
            run = self.runs.setdefault(variables["name"], {})
            run.update({name: value for name, value in variables.items() if value is not None})
            if isinstance(run.get("config"), str):
                run["config"] = json.loads(run["config"])
            return {"data": {"upsertBucket": {"bucket": self.bucket(variables["name"]), "inserted": True}}}
        if "viewer" in query:
            return {"data": {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}",
                                        "teams": {"edges": []}}}}  # fmt: skip
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}}
        if "serverFeatures" in query or "serverInfo" in query:
            return {"data": {"serverInfo": {"features": []}}}
        if "ArtifactType" in query:
            return {"data": {"project": {"artifact": None}}}
        if "createArtifact" in query:  # a table; as if it had been uploaded before
            committed = {"id": "1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "1"}}}
            return {"data": {"createArtifact": {"artifact": committed}}}
        if "RunResumeStatus" in query:
            return {"data": {"model": {**self.project, "bucket": None}}}
        self.unknown.append(" ".join(query.split()))
        return {"data": {}}

    def bucket(self, name: str) -> dict[str, Any]:
        return {"id": name, "name": name, "displayName": name, "description": "", "config": "{}",
                "sweepName": None, "project": self.project, "historyLineCount": 0, "historyTail": "[]",
                "summaryMetrics": "{}"}  # fmt: skip

    def stream(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        for name, sent in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in sent["content"] if line.startswith("{")]
            if name == "wandb-history.jsonl":
                self.history.setdefault(run_id, []).extend(lines)
            elif name == "wandb-summary.json":
                self.summary.setdefault(run_id, {}).update(lines[-1])
        if "exitcode" in body:
            self.exit_code[run_id] = body["exitcode"]
        return {}


class _Handler(BaseHTTPRequestHandler):
    server: FakeWandbServer

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reply({})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "json" not in self.headers.get("Content-Type", ""):
            return self.reply({})  # the client's own telemetry
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        self.reply(self.server.answer(self.path, json.loads(raw or b"{}")))

    def reply(self, value: dict[str, Any]) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None:
        pass
