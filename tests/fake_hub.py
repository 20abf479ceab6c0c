"""A local server that speaks as much of the Hugging Face Hub's API as publishing and loading a model needs.

Repositories live in memory. Tokens have owners and rights, and any request can be made to fail:

    with FakeHub() as hub:
        hub.fail("PUT", "/lfs-upload/", status=500, times=2)
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".gz", ".h5ad", ".png")
OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"


@dataclass
class Commit:
    oid: str
    files: dict[str, bytes]
    title: str = "initial commit"


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in commits if commit.oid == revision), None)


@dataclass
class User:
    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def may_write_to(self, namespace: str) -> bool:
        return self.role == "write" and namespace in (self.name, *self.organizations)


@dataclass
class Failure:
    """What happens instead of an answer: a status, or a connection that is cut (status 0)."""

    method: str
    path: str
    status: int
    message: str
    times: int
    after_answering: bool = False


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class FakeHub:
    """Repositories, users and a log of requests; `url` goes into HF_ENDPOINT."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    users: dict[str, User] = field(
        default_factory=lambda: {
            OWNER: User("tester", organizations=("lab",)),
            READER: User("tester", role="read"),
            STRANGER: User("stranger"),
        }
    )
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, *, status: int = 0, message: str = "", times: int = 1, **how) -> None:
        """The next `times` requests whose path matches get `status`, or lose their connection (status 0)."""
        self.failures.append(Failure(method, path, status, message, times, **how))

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[name].find(revision).files

    def titles(self, name: str, revision: str = "main") -> list[str]:
        return [commit.title for commit in self.repositories[name].branches[revision]]


@contextmanager
def running_hub(monkeypatch):
    """A fake Hub that this process takes for the real one, as its owner, without long waits between attempts."""
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", OWNER)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args):
        pass

    def do_any(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self._read_body()
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            failure = self._next_failure(path)
            if failure and not failure.after_answering:
                return self._fail(failure)
            try:
                answer = self._route(path, body)
            except Refusal as refusal:
                return self._refuse(refusal)
        if failure:
            return self._fail(failure)
        return self._answer(*answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _next_failure(self, path: str) -> Failure | None:
        for failure in self.hub.failures:
            if failure.times and failure.method == self.command and re.search(failure.path, path):
                failure.times -= 1
                return failure
        return None

    def _fail(self, failure: Failure) -> None:
        if failure.status:
            return self._refuse(Refusal(failure.status, "", failure.message))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
        self._answer(refusal.status, {"error": str(refusal)}, headers)

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        is_bytes = isinstance(content, bytes)
        data = content if is_bytes else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if is_bytes else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, path: str, body: bytes):
        for methods, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                return action(self, body, *match.groups())
        raise Refusal(404, "", f"the fake Hub does not know {self.command} {path}")

    # Who is asking, and for what

    def _user(self) -> User | None:
        return self.hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _require_user(self) -> User:
        user = self._user()
        if user is None:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return user

    def _require_writer(self, name: str) -> User:
        user = self._require_user()
        if not user.may_write_to(name.partition("/")[0]):
            namespace = name.partition("/")[0]
            raise Refusal(403, "", f'You don\'t have the rights to write to a model under the namespace "{namespace}"')
        return user

    def _repository(self, name: str) -> Repository:
        repository, user = self.hub.repositories.get(name), self._user()
        is_member = user is not None and name.partition("/")[0] in (user.name, *user.organizations)
        if repository is None or (repository.private and not is_member):
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, name: str, revision: str) -> Commit:
        commit = self._repository(name).find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # The endpoints

    def whoami(self, body):
        user = self._require_user()
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
        organizations = [{"type": "org", "name": name} for name in user.organizations]
        return 200, {"type": "user", "name": user.name, "fullname": user.name, "orgs": organizations, "auth": auth}

    def create(self, body):
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or self._require_user().name}/{wanted['name']}"
        self._require_writer(name)
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        commit = Commit(hashlib.sha1(name.encode()).hexdigest(), {".gitattributes": b""})
        is_private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(bool(is_private), {"main": [commit]})
        return 200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name}

    def create_branch(self, body, name, branch):
        self._require_writer(name)
        self._repository(name).branches[branch] = [self._commit(name, "main")]
        return 200, {}

    def validate_card(self, body):
        import yaml

        content = json.loads(body)["content"]
        try:
            yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": f"invalid YAML: {error}"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def info(self, body, name, revision=None):
        commit, repository = self._commit(name, revision or "main"), self._repository(name)
        siblings = [self._entry(path, content) | {"rfilename": path} for path, content in sorted(commit.files.items())]
        return 200, {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": commit.oid,
            "private": repository.private,
            "tags": [],
            "siblings": [{key: entry[key] for key in entry if key not in ("path", "type")} for entry in siblings],
        }

    @staticmethod
    def _entry(path: str, content: bytes) -> dict:
        git_oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid, "blobId": git_oid}
        if path.endswith(LFS_SUFFIXES):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
        return entry

    def refs(self, body, name):
        branches = self._repository(name).branches.items()
        heads = [{"name": key, "ref": f"refs/heads/{key}", "targetCommit": log[-1].oid} for key, log in branches]
        return 200, {"branches": heads, "tags": [], "converts": []}

    def tree(self, body, name, revision, folder=None):
        files = self._commit(name, revision).files
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        inside = {path: content for path, content in sorted(files.items()) if path.startswith(prefix)}
        if self.query.get("recursive", "").lower() == "true":
            return 200, [self._entry(path, content) for path, content in inside.items()]
        direct = {path: content for path, content in inside.items() if "/" not in path.removeprefix(prefix)}
        folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside if path not in direct}
        entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        return 200, entries + [self._entry(path, content) for path, content in direct.items()]

    def paths_info(self, body, name, revision):
        files = self._commit(name, revision).files
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        paths = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
        return 200, [self._entry(path, files[path]) for path in paths if path in files]

    def resolve(self, body, name, revision, path):
        commit = self._commit(name, revision)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        entry = self._entry(path, content)
        tag = entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{tag}"', "X-Linked-Size": len(content)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.command == "GET":
            start, stop = int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else len(content)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return 206, content[start:stop], headers
        return 200, content, headers

    def preupload(self, body, name, revision):
        self._require_writer(name)
        known = self._commit(name, "main" if "create_pr" in self.query else revision).files

        def mode(file):
            path = file["path"]
            oid = self._entry(path, known[path])["oid"] if path in known else None
            kind = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            return {"path": path, "uploadMode": kind, "shouldIgnore": False, "oid": oid}

        return 200, {"files": [mode(file) for file in json.loads(body)["files"]]}

    def lfs_batch(self, body, name):
        self._require_writer(name)

        def action(wanted):
            upload = {"upload": {"href": f"{self.hub.url}/lfs-upload/{wanted['oid']}"}}
            return {**wanted, **({} if wanted["oid"] in self.hub.blobs else {"actions": upload})}

        return 200, {"transfer": "basic", "objects": [action(wanted) for wanted in json.loads(body)["objects"]]}

    def lfs_upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "", "the content does not have the promised hash")
        self.hub.blobs[oid] = body
        return 200, b""

    def commit(self, body, name, revision):
        self._require_writer(name)
        repository, head = self._repository(name), self._commit(name, revision)
        header, files = {}, dict(head.files)
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        if header.get("parentCommit", head.oid) != head.oid:
            raise Refusal(412, "", "The branch has moved: its head is not the expected parent commit")
        digest = hashlib.sha1(head.oid.encode() + repr(sorted(files.items())).encode()).hexdigest()
        commit = Commit(digest, files, header["summary"])
        answer = {"success": True, "commitOid": digest, "commitUrl": f"{self.hub.url}/{name}/commit/{digest}"}
        if self.query.get("create_pr") == "1":
            revision = f"refs/pr/{1 + sum(branch.startswith('refs/pr/') for branch in repository.branches)}"
            repository.branches[revision] = [head]
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{revision.rpartition('/')[2]}"
        repository.branches[revision].append(commit)
        return 200, answer


_NAME, _REVISION = r"([^/]+/[^/]+)", r"((?:refs/pr/\d+)|[^/]+)"
_KIND = "/api/(?:models|spaces)"
_READ = ("GET", "HEAD")
_ROUTES = [
    (_READ, "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_card),
    (_READ, f"{_KIND}/{_NAME}", _Handler.info),
    (_READ, f"{_KIND}/{_NAME}/revision/(.+)", _Handler.info),
    (_READ, f"/api/models/{_NAME}/refs", _Handler.refs),
    (_READ, f"{_KIND}/{_NAME}/tree/{_REVISION}(?:/(.*))?", _Handler.tree),
    (("POST",), f"/api/models/{_NAME}/paths-info/(.+)", _Handler.paths_info),
    (("POST",), f"/api/models/{_NAME}/branch/(.+)", _Handler.create_branch),
    (("POST",), f"{_KIND}/{_NAME}/preupload/(.+)", _Handler.preupload),
    (("POST",), f"{_KIND}/{_NAME}/commit/(.+)", _Handler.commit),
    (("POST",), rf"/(?:spaces/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), "/lfs-upload/([0-9a-f]{64})", _Handler.lfs_upload),
    (_READ, f"/{_NAME}/resolve/{_REVISION}/(.+)", _Handler.resolve),
]
