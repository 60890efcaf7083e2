"""A small Hugging Face Hub on the loopback: what huggingface_hub asks of the real one to create, fill and read a repository.

Files go up as on the real Hub without Xet: large and binary ones by Git LFS (batch, upload, verify), the others within the
commit. Tokens are checked, private repositories hidden, branches kept apart; connections can be dropped in mid-upload, and uploads held.

    with StandInHub() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})
        assert "README.md" in hub.files("user/name")
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "user"
WRITES, READS, BAD = (f"hf_{name}".ljust(40, "0") for name in ("Writes", "Reads", "Unknown"))
LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".png")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class File:
    data: bytes = field(repr=False)
    lfs: bool

    @property
    def oid(self) -> str:
        """As git names it, or LFS."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def described(self, path: str) -> dict:
        own = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        return own | ({"lfs": {"oid": self.oid, "size": len(self.data), "pointerSize": 134}} if self.lfs else {})


@dataclass
class Repo:
    name: str
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        sha = hashlib.sha1(f"{self.name} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha


class Refusal(Exception):
    """An answer other than 200, with the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str = "", **more):
        self.status, self.message, self.code, self.more = status, message, code, more


class StandInHub:
    """The server and what it holds.

    `faults` counts the connections still to be dropped in mid-upload: of "lfs" uploads and of "commit"s; -1 drops all.
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults = {"lfs": 0, "commit": 0}
        self.open = threading.Event()
        self.open.set()
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = WRITES) -> dict[str, str]:
        """What a child process needs to take this for the Hub."""
        own = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return own | {"HF_TOKEN": token or ""}

    def files(self, name: str, kind: str = "models", branch: str = "main") -> dict[str, bytes]:
        """The content of a repository."""
        repo = self.repos[kind, name]
        return {path: file.data for path, file in repo.commits[repo.branches[branch]].items()}

    def drops(self, what: str) -> bool:
        with self.lock:
            left = self.faults[what]
            self.faults[what] = max(left - 1, -1) if left > 0 else left
            return left != 0


class Handler(BaseHTTPRequestHandler):
    """One connection; `hub` is the server's."""

    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def answer(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {url.path}")
        method = "GET" if self.command == "HEAD" else self.command
        found = (
            (make, match) for verb, route, make in ROUTES if verb == method and (match := route.fullmatch(url.path))
        )
        make, match = next(found, (None, None))
        what = {upload: "lfs", commit: "commit"}.get(make)
        if what and self.hub.drops(what):
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.body = self.read_body()
        if make is batch:
            self.hub.open.wait(60)
        try:
            self.level = self.check_token()
            if make is None:
                raise Refusal(404, f"the stand-in has no {self.command} {url.path}")
            with self.hub.lock:
                # A revision is quoted as one segment, slashes and all.
                result = make(self, **{key: unquote(value) for key, value in match.groupdict("").items()})
            status, headers, data = result if isinstance(result, tuple) else (200, {}, json.dumps(result).encode())
        except Refusal as refusal:
            status, data = refusal.status, json.dumps({"error": refusal.message, **refusal.more}).encode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def check_token(self) -> str:
        """ "" without a token, "read" or "write"."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given not in ("", READS, WRITES):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return {"": "", READS: "read", WRITES: "write"}[given]

    def must_write(self):
        if self.level != "write":
            status = 403 if self.level else 401
            raise Refusal(status, "You don't have the rights to create or change a repository of this namespace")

    def repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind or "models", name))
        if repo is None or (repo.private and not self.level):
            raise Refusal(404 if self.level else 401, "Repository not found", "RepoNotFound")
        return repo

    def revision(self, repo: Repo, revision: str) -> tuple[str, dict[str, File]]:
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    def log_message(self, *_):
        pass


def set_faults(request):
    """For a child process: `StandInHub.faults`."""
    request.hub.faults.update(json.loads(request.body))
    return {}


def hold(request):
    """For a child process: large files whose sha256 is known wait before they go up, until it says so."""
    if json.loads(request.body):
        request.hub.open.clear()
    else:
        request.hub.open.set()
    return {}


def whoami(request):
    if not request.level:
        raise Refusal(401, "Invalid username or password.")
    return {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": request.level}}}


def create(request):
    request.must_write()
    asked = json.loads(request.body)
    kind, name = f"{asked.get('type', 'model')}s", f"{asked.get('organization') or USER}/{asked['name']}"
    url = f"{request.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
    if (kind, name) in request.hub.repos:
        raise Refusal(409, "You already created this repo", url=url)
    private = asked.get("visibility") == "private" or asked.get("private", False)
    repo = request.hub.repos[kind, name] = Repo(name, private)
    repo.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit")
    return {"url": url, "name": name}


def validate_yaml(request):
    head = re.match(r"---\n(.*?)\n---", json.loads(request.body)["content"], re.DOTALL)
    try:
        yaml.safe_load(head[1] if head else "")
    except yaml.YAMLError as error:
        raise Refusal(400, "Invalid metadata", errors=[{"message": str(error)}], warnings=[]) from error
    return {"errors": [], "warnings": []}


def info(request, kind, name, revision=""):
    repo = request.repo(kind, name)
    sha, files = request.revision(repo, revision or "main")
    own = {"_id": name, "id": name, "author": USER, "sha": sha, "private": repo.private, "gated": False}
    own |= {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "lastModified": DATE, "createdAt": DATE}
    return own | {"siblings": [{"rfilename": path} for path in sorted(files)]}


def refs(request, kind, name):
    repo = request.repo(kind, name)
    return {
        "branches": [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
            for branch, sha in repo.branches.items()
        ],
        "tags": [],
        "converts": [],
    }


def branch(request, kind, name, revision):
    request.must_write()
    repo = request.repo(kind, name)
    if revision in repo.branches:
        raise Refusal(409, "Reference already exists")
    repo.branches[revision] = repo.branches["main"]
    return {}


def tree(request, kind, name, revision, path=""):
    files = request.revision(request.repo(kind, name), revision)[1]
    inside = {own: file for own, file in files.items() if not path or own.startswith(f"{path}/")}
    if path and not inside:
        raise Refusal(404, f"{path} does not exist", "EntryNotFound")
    skip = len(path) + 1 if path else 0
    folders = {own[: at + skip] for own in inside for at, letter in enumerate(own[skip:]) if letter == "/"}
    if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        folders = {own for own in folders if "/" not in own[skip:]}
        inside = {own: file for own, file in inside.items() if "/" not in own[skip:]}
    listed = [{"type": "directory", "path": own, "size": 0, "oid": "0" * 40} for own in sorted(folders)]
    return listed + [file.described(own) for own, file in sorted(inside.items())]


def paths_info(request, kind, name, revision):
    files = request.revision(request.repo(kind, name), revision)[1]
    sent = request.body.decode()
    paths = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent).get("paths", [])
    found = [files[path].described(path) for path in paths if path in files]
    folders = [path for path in paths if any(own.startswith(f"{path}/") for own in files)]
    return found + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]


def preupload(request, kind, name, revision):
    request.must_write()
    files = request.revision(request.repo(kind, name), revision)[1]
    return {
        "files": [
            {
                "path": own["path"],
                "uploadMode": "lfs" if own["path"].endswith(LARGE) or own["size"] > 10_000_000 else "regular",
                "shouldIgnore": False,
                "oid": files[own["path"]].oid if own["path"] in files else None,
            }
            for own in json.loads(request.body)["files"]
        ]
    }


def batch(request, kind, name):
    request.must_write()
    request.repo(kind.rstrip("/"), name)
    objects = []
    for own in json.loads(request.body)["objects"]:
        href = f"{request.hub.url}/lfs/{own['oid']}"
        actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify", "header": {}}}
        objects.append(own if own["oid"] in request.hub.objects else {**own, "actions": actions})
    return {"transfer": "basic", "objects": objects}


def upload(request, oid):
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, "the content is not that of its sha256")
    request.hub.objects[oid] = request.body
    return {}


def verify(request, oid):
    if len(request.hub.objects.get(oid, b"")) != json.loads(request.body)["size"]:
        raise Refusal(422, "the object is not there, or of another size")
    return {}


def commit(request, kind, name, revision):
    request.must_write()
    repo = request.repo(kind, name)
    files = dict(request.revision(repo, revision)[1])
    message = ""
    for line in request.body.splitlines():
        own = json.loads(line)
        value = own["value"]
        if own["key"] == "header":
            message = value["summary"]
        elif own["key"] == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]), False)
        elif own["key"] == "lfsFile":
            if value["oid"] not in request.hub.objects:
                raise Refusal(400, f"{value['path']} was not uploaded")
            files[value["path"]] = File(request.hub.objects[value["oid"]], True)
        else:
            files = {path: file for path, file in files.items() if not f"{path}/".startswith(f"{value['path']}/")}
    sha = repo.commit(revision, files, message)
    return {"success": True, "commitOid": sha, "commitUrl": f"{request.hub.url}/{name}/commit/{sha}"}


def resolve(request, kind, name, revision, path):
    sha, files = request.revision(request.repo(kind.rstrip("/"), name), revision)
    if path not in files:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    file = files[path]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"', "Content-Type": "application/octet-stream"}
    if file.lfs:
        headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": len(file.data)}
    if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
        first, last = int(wanted[1]), min(int(wanted[2] or len(file.data)), len(file.data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(file.data)}"
        return 206, headers, file.data[first : last + 1]
    return 200, headers, file.data


API, NAME, REVISION = "/api/(?P<kind>models|datasets)/", "(?P<name>[^/]+/[^/]+?)", "(?P<revision>[^/]+)"
PLAIN = f"/(?P<kind>datasets/)?{NAME}"

ROUTES = [
    (method, re.compile(route), make)
    for method, route, make in (
        ("POST", "/faults", set_faults),
        ("POST", "/hold", hold),
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", validate_yaml),
        ("GET", f"{API}{NAME}(/revision/{REVISION})?", info),
        ("GET", f"{API}{NAME}/refs", refs),
        ("GET", f"{API}{NAME}/tree/{REVISION}(/(?P<path>.+))?", tree),
        ("POST", f"{API}{NAME}/paths-info/{REVISION}", paths_info),
        ("POST", f"{API}{NAME}/preupload/{REVISION}", preupload),
        ("POST", f"{API}{NAME}/commit/{REVISION}", commit),
        ("POST", f"{API}{NAME}/branch/{REVISION}", branch),
        ("POST", rf"{PLAIN}\.git/info/lfs/objects/batch", batch),
        ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", upload),
        ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", verify),
        ("GET", f"{PLAIN}/resolve/{REVISION}/(?P<path>.+)", resolve),
    )
]
