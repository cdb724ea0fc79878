"""A model hub on the loopback interface: what HuggingFace's client needs to find and fetch models."""

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Iterator
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"
LARGE = (".safetensors", ".bin", ".h5", ".msgpack")  # kept elsewhere: the hub gives a redirect to them


@dataclass
class Repository:
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def push(self, files: dict[str, bytes] | Path, branch: str = "main") -> str:
        """A commit that ``branch`` points to from now on."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        commit = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class Hub:
    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.log: list[str] = []  # METHOD PATH, without the query
        self.after: dict[str, object] = {}  # what to do, once, when the answer to such a request is made
        self.url = ""
        self.is_down = False  # answers, but with nothing else

    def repository(self, name: str, files: dict[str, bytes] | Path | None = None, gated: bool = False) -> Repository:
        made = self.repositories[name] = Repository(gated)
        if files is not None:
            made.push(files)
        return made

    @property
    def fetched(self) -> set[str]:
        """Names of the files whose content was given away."""
        return {line.rpartition("/")[2] for line in self.log if line.startswith("GET /") and "/api/" not in line}


@contextmanager
def served() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class RefusedError(Exception):
    """An answer that is an error: its status, and the headers by which the client knows what it means."""

    def __init__(self, status: int, code: str, message: str):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments):
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")]  # a branch's name may have slashes
        line = f"{self.command} {'/'.join(parts)}"
        self.hub.log.append(line)
        try:
            status, headers, body = self.answer(parts[1:])
        except RefusedError as refused:
            status, headers, body = refused.status, refused.headers, b"{}"
        if then := self.hub.after.pop(line, None):  # before the client can ask for more
            then()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD  # noqa: N815

    def answer(self, parts: list[str]) -> tuple[int, dict, bytes]:
        if self.hub.is_down:
            raise RefusedError(503, "", "Down")
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        if parts[:2] == ["api", "models"]:
            return 200, {"Content-Type": "application/json"}, json.dumps(self.about(parts[2:])).encode()
        elsewhere = parts[0] == "lfs"
        owner, name, _, revision, *file = parts[elsewhere:]
        repository, commit = self.find(owner, name, revision)
        if repository.gated and "Authorization" not in self.headers and not elsewhere:
            raise RefusedError(403, "GatedRepo", f"Access to model {owner}/{name} is restricted")
        content = repository.commits[commit].get("/".join(file))
        if content is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if file[-1].endswith(LARGE) and not elsewhere:
            location = f"{self.hub.url}/lfs/{owner}/{name}/resolve/{commit}/{'/'.join(file)}"
            linked = {"X-Linked-ETag": etag, "X-Linked-Size": len(content), "Location": location}
            return 302, {"X-Repo-Commit": commit, "ETag": '"pointer"', **linked}, b""
        headers = {"X-Repo-Commit": commit, "ETag": etag}
        if resumed := self.headers.get("Range"):  # bytes=FIRST-, after a download that broke off
            first, last = int(resumed[6:].rstrip("-")), len(content) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, headers, content[first:]
        return 200, headers, content

    def about(self, parts: list[str]) -> dict | list:
        owner, name, kind, revision = [*parts, "revision", "main"][:4]
        repository, commit = self.find(owner, name, revision)
        files = repository.commits[commit]
        if kind == "tree":
            return [{"type": "file", "path": path, "size": len(files[path]), "oid": commit} for path in files]
        return {
            "id": f"{owner}/{name}", "modelId": f"{owner}/{name}", "sha": commit, "private": False,
            "gated": repository.gated and "manual", "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path} for path in files],
        }  # fmt: skip

    def find(self, owner: str, name: str, revision: str) -> tuple[Repository, str]:
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            raise RefusedError(404, "RepoNotFound", "Repository not found")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit
