"""A Hub on loopback: the part of its HTTP interface that publishing and `from_pretrained` use, in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_me": ("me", True), "hf_reader": ("reader", False)}
"""Token -> user, and whether it may write."""
LFS = (".safetensors", ".png")
NO_REPO, NO_REVISION, NO_ENTRY = "RepoNotFound", "RevisionNotFound", "EntryNotFound"


@dataclass
class Repo:
    """Commits by their ids, each a tree: path -> content. Refs name commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, bytes]) -> str:
        listed = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in tree.items())
        oid = hashlib.sha1(f"{len(self.commits)} {listed}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = tree, oid
        return oid

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or an id names."""
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )


class HubServer(ThreadingHTTPServer):
    """What was asked is written down, and an upload may be made to break or to hang."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.break_commit = self.hang_at_weights = False
        self.weights_arrived = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repo(self, repo_id: str) -> Repo:
        return self.repos["models", repo_id]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return self.repo(repo_id).commits[self.repo(repo_id).find(revision)]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer
    # (method, path) -> name of a method, whose arguments are the groups, decoded.
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/auth-check(/write)?", "auth_check"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", "tree"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/api/models/([^/]+/[^/]+)/tag/([^/]+)", "tag"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(\w+)", "lfs_put"),
        ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.server.log.append(f"{self.command} {self.path}")
        method = {"HEAD": "GET"}.get(self.command, self.command)
        for verb, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, urlsplit(self.path).path)
            if match and verb == method:
                try:
                    found = getattr(self, name)(*(group and unquote(group) for group in match.groups()))
                    content, headers = found if isinstance(found, tuple) else (json.dumps(found).encode(), {})
                    self.reply(200, content, headers)
                except Refused as refused:
                    headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
                    self.reply(refused.status, json.dumps({"error": refused.message}).encode(), headers)
                return
        self.reply(404, b'{"error": "no such page"}', {})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(self, status: int, content: bytes, headers: dict) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass

    # ---- who asks, and for what ----

    def user(self) -> tuple[str, bool]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refused(401, "Invalid credentials")
        return TOKENS[token]

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        if (kind, repo_id) not in self.server.repos:
            raise Refused(404, "Repository not found", NO_REPO)
        return self.server.repos[kind, repo_id]

    def may_write(self, repo_id: str) -> None:
        name, writes = self.user()
        if not writes or repo_id.split("/")[0] != name:
            raise Refused(403, f"you have no write rights to {repo_id}")

    def tree_of(self, repo_id: str, revision: str, kind: str = "models") -> dict[str, bytes]:
        oid = self.repo(repo_id, kind).find(revision)
        if oid is None:
            raise Refused(404, "Invalid rev id", NO_REVISION)
        return self.repo(repo_id, kind).commits[oid]

    def whoami(self):
        return {"type": "user", "name": self.user()[0], "orgs": []}

    def validate(self):
        if "license: no-such-licence" in json.loads(self.body)["content"]:
            raise Refused(400, '"license" must be one of [apache-2.0, mit]')
        return {"errors": [], "warnings": []}

    def auth_check(self, kind: str, repo_id: str, write: str | None):
        self.repo(repo_id, kind)
        if write:
            self.may_write(repo_id)
        return {}

    def info(self, kind: str, repo_id: str, revision: str | None):
        repo = self.repo(repo_id, kind)
        if not repo.commits:
            return {"id": repo_id, "private": repo.private, "siblings": [], "tags": []}
        tree = self.tree_of(repo_id, revision or "main", kind)
        return {
            "id": repo_id, "sha": repo.find(revision or "main"), "private": repo.private, "tags": [], "downloads": 0,
            "likes": 0, "siblings": [{"rfilename": path} for path in tree],
        }  # fmt: skip

    def refs(self, repo_id: str):
        repo = self.repo(repo_id)
        listed = {
            kind: [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in refs.items()]
            for kind, where, refs in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
        }
        return {**listed, "converts": []}

    def tree(self, kind: str, repo_id: str, revision: str, folder: str | None):
        tree = self.tree_of(repo_id, revision, kind)
        if folder and not any(path.startswith(f"{folder}/") for path in tree):
            raise Refused(404, "no such entry", NO_ENTRY)
        return [
            {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
            for path, content in tree.items()
            if not folder or path.startswith(f"{folder}/")
        ]

    # ---- what is written ----

    def create(self):
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.user()[0]}/{asked['name']}"
        self.may_write(repo_id)
        if ("models", repo_id) in self.server.repos:
            raise Refused(409, "You already created this model repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = self.server.repos["models", repo_id] = Repo(private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs"})
        return {"url": f"{self.server.address}/{repo_id}", "name": repo_id}

    def preupload(self, repo_id: str, revision: str):
        tree, found = self.tree_of(repo_id, revision), []
        for file in json.loads(self.body)["files"]:
            lfs, content = file["path"].endswith(LFS), tree.get(file["path"])
            oid = None if content is None else hashlib.sha256(content).hexdigest() if lfs else git_id(content)
            mode = "lfs" if lfs else "regular"
            found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": found}

    def lfs_batch(self, repo_id: str):
        self.user()
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}
            objects.append(one if one["oid"] in self.server.blobs else {**one, "actions": upload})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str):
        if self.server.hang_at_weights:
            self.server.weights_arrived.set()
            threading.Event().wait(60)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content has another hash")
        self.server.blobs[oid] = self.body
        return b"", {}

    def commit(self, repo_id: str, revision: str):
        pull_request = "create_pr=1" in self.path
        if not pull_request:
            self.may_write(repo_id)
        if self.server.break_commit:
            raise Refused(500, "the disk is on fire")
        repo, tree = self.repo(repo_id), dict(self.tree_of(repo_id, revision))
        for line in self.body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                tree[value["path"]] = self.server.blobs[value["oid"]]
            elif key == "deletedFile":
                del tree[value["path"]]
            else:
                assert key == "header", key
        branch = f"refs/pr/{len(repo.branches)}" if pull_request else revision
        oid = repo.commit(branch, tree)
        url = f"{self.server.address}/{repo_id}/discussions/1" if pull_request else None
        return {
            "commitUrl": f"{self.server.address}/{repo_id}/commit/{oid}", "commitOid": oid, "pullRequestUrl": url,
        }  # fmt: skip

    def tag(self, repo_id: str, revision: str):
        self.may_write(repo_id)
        repo, tag = self.repo(repo_id), json.loads(self.body)["tag"]
        if tag in repo.tags:
            raise Refused(409, "Tag reference exists already")
        repo.tags[tag] = repo.find(revision)
        return {}

    def resolve(self, kind: str | None, repo_id: str, revision: str, path: str):
        kind = (kind or "models").rstrip("/")
        tree = self.tree_of(repo_id, revision, kind)
        if path not in tree:
            raise Refused(404, "no such entry", NO_ENTRY)
        found = {"X-Repo-Commit": self.repo(repo_id, kind).find(revision), "ETag": f'"{git_id(tree[path])}"'}
        return tree[path], found
