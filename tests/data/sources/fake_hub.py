"""As much of the Hub as it takes to load a data set: one repository, served from memory on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@contextmanager
def fake_hub(repository: str, files: dict[str, bytes]) -> Iterator[str]:
    """Serves a data set's files, given path -> content, as its only revision. Gives the address."""
    about = f"/api/datasets/{repository}"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            _, _, name = path.partition(f"/datasets/{repository}/resolve/")
            name = name.partition("/")[2]
            if path.startswith("/datasets/") and name in files:
                return self.answer(files[name], ETag=f'"{etag(files[name])}"')
            if path == about or path in (f"{about}/revision/main", f"{about}/revision/{COMMIT}"):
                return self.answer({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": one} for one in files]})
            if path.startswith(f"{about}/tree/"):
                found = listing(path.removeprefix(f"{about}/tree/").partition("/")[2])
                return self.answer(found) if found else self.refuse("EntryNotFound")
            if path.startswith(about):
                return self.refuse("RevisionNotFound")
            return self.refuse("EntryNotFound" if name else "RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self):
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            try:
                paths = json.loads(asked)["paths"]
            except ValueError:
                paths = [unquote(pair.partition("=")[2]) for pair in asked.split("&") if pair.startswith("paths=")]
            self.answer(entries(name for name in files if name in paths))

        def answer(self, content, **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, code):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def entries(names):
        return [{"type": "file", "path": name, "size": len(files[name]), "oid": etag(files[name])} for name in names]

    def listing(folder):
        """Returns what stands directly in a folder."""
        inside = [name.removeprefix(f"{folder}/") for name in files if name.startswith(f"{folder}/") or not folder]
        folders = sorted({name.split("/")[0] for name in inside if "/" in name})
        place = f"{folder}/" if folder else ""
        return entries(f"{place}{name}" for name in inside if "/" not in name) + [
            {"type": "directory", "path": f"{place}{name}", "oid": etag(name.encode())} for name in folders
        ]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
