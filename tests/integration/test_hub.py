"""hub_main against a hub of our own on 127.0.0.1, and against huggingface_hub on the same cache."""

import gzip
import hashlib
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading

import pytest

from conftest import Reader, make_text

MAIN = "a" * 40
OLDER = "b" * 40
BUILD = os.environ.get("DYNSLICE_BUILD_DIR")

pytestmark = pytest.mark.skipif(not BUILD, reason="SKIPPED: DYNSLICE_BUILD_DIR is not set, it must hold bin/hub_main")


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def random_bytes(size):
    return hashlib.shake_128(b"weights").digest(size)


class Hub:
    """A hub and, as `cdn`, the other host that large files lie on. Faults are set per test."""

    def __init__(self):
        self.files = {}  # "org/name" or "datasets/org/name" -> {file: bytes}
        self.lfs_suffixes = (".safetensors", ".zip", ".gguf", ".gz")
        self.requests = []  # (server's name, method, path, headers)
        self.cut_after = []  # one number of bytes a GET of a large file: the connection is dropped there
        self.statuses = []  # (status, headers) answered before anything else, one a request
        self.ignore_range = False
        self.corrupt = False
        self.use_cdn = False
        self.token = None
        self.stall = None  # bytes after which a large file comes no more
        self.listing_files = None  # what the listing says instead of the truth
        self.stop_stalling = threading.Event()
        self.servers = {name: self._serve(name) for name in ("hub", "cdn")}

    def _serve(self, name):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, name)

            def do_GET(self):
                hub.answer(self, name)

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def url(self, name="hub"):
        return f"http://127.0.0.1:{self.servers[name].server_address[1]}"

    def close(self):
        self.stop_stalling.set()
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def paths(self, method, name="hub"):
        return [path for server, verb, path, _ in self.requests if server == name and verb == method]

    @staticmethod
    def reply(request, status, headers=(), body=b""):
        request.send_response(status)
        headers = dict(headers)
        headers.setdefault("Content-Length", str(len(body)))
        for key, value in headers.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def answer(self, request, server):
        self.requests.append((server, request.command, request.path, dict(request.headers)))
        if server == "cdn":
            repo, _, file = request.path.lstrip("/").partition("/resolve/")
            return self.send_file(request, self.files[repo][file], {})
        if self.statuses:
            status, headers = self.statuses.pop(0)
            return self.reply(request, status, headers, b"no\n")
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.reply(request, 401, {"X-Error-Code": "GatedRepo"})
        if request.path.startswith("/api/"):
            return self.list(request)
        return self.resolve(request)

    def list(self, request):
        kind, rest = request.path.removeprefix("/api/").split("/", 1)
        repo, _, revision = rest.partition("/revision/")
        key = repo if kind == "models" else f"datasets/{repo}"
        if key not in self.files:
            return self.reply(request, 404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", MAIN):
            return self.reply(request, 404, {"X-Error-Code": "RevisionNotFound"})
        names = self.listing_files or list(self.files[key])
        listing = {"id": repo, "sha": MAIN, "siblings": [{"rfilename": name} for name in names]}
        self.reply(request, 200, {"Content-Type": "application/json"}, json.dumps(listing).encode())

    def resolve(self, request):
        repo, _, rest = request.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if repo not in self.files:
            return self.reply(request, 404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", MAIN):
            return self.reply(request, 404, {"X-Error-Code": "RevisionNotFound"})
        if file not in self.files[repo]:
            return self.reply(request, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": MAIN})
        content = self.files[repo][file]
        if not file.endswith(self.lfs_suffixes):
            headers = {"X-Repo-Commit": MAIN, "ETag": f'"{git_sha1(content)}"', "Content-Length": str(len(content))}
            return self.reply(request, 200, headers, content)
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": MAIN, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        if self.use_cdn:
            return self.reply(request, 302, {**headers, "Location": f"{self.url('cdn')}/{repo}/resolve/{file}"})
        return self.send_file(request, content, {**headers, "ETag": '"other"'})

    def send_file(self, request, content, headers):
        if request.command == "HEAD":
            return self.reply(request, 200, {**headers, "Content-Length": str(len(content))})
        first = 0
        if "Range" in request.headers and not self.ignore_range:
            first = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                return self.reply(request, 416, {"Content-Range": f"bytes */{len(content)}"})
        request.send_response(206 if first else 200)
        for key, value in headers.items():
            request.send_header(key, value)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        body = content[first:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.corrupt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.stall is not None:
            request.wfile.write(body[: self.stall])
            request.wfile.flush()
            self.stop_stalling.wait()
        elif self.cut_after:
            request.wfile.write(body[: self.cut_after.pop(0)])
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
        else:
            request.wfile.write(body)


WEIGHTS = random_bytes(300_000)
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b'{"version": "1.0"}',
    "README.md": b"not needed",
    "pytorch_model.bin": b"not needed",
}


@pytest.fixture
def hub():
    server = Hub()
    server.files["org/name"] = dict(MODEL)
    yield server
    server.close()


class Client:
    def __init__(self, hub, home):
        self.home = home
        self.cache = home / "hub"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.environment |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url()}
        self.environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def start(self, *arguments, **extra):
        return subprocess.Popen(
            [pathlib.Path(BUILD) / "bin" / "hub_main", *arguments],
            env=self.environment | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **extra):
        process = self.start(*arguments, **extra)
        out, err = process.communicate(timeout=120)
        process.out, process.err = out.strip(), err.strip()
        return process

    def path(self, *arguments, **extra):
        process = self.run(*arguments, **extra)
        assert process.returncode == 0, process.err
        return pathlib.Path(process.out)

    def error(self, code, *arguments, **extra):
        """The one line that the program ends with; that it is one line is part of every test."""
        process = self.run(*arguments, **extra)
        assert process.returncode == code, (process.returncode, process.out, process.err)
        lines = [line for line in process.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith("error: "), process.err
        return lines[0]

    def repo(self, name="models--org--name"):
        return self.cache / name

    def incomplete(self):
        return list(self.cache.glob("*/blobs/*.incomplete"))


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path / "hf")


def test_a_file_is_laid_out_as_huggingface_hub_does(hub, client):
    hub.files["org/name"]["sub/deep/x.safetensors"] = b"deep"
    path = client.path("model", "org/name", "sub/deep/x.safetensors")
    repo = client.repo()
    digest = hashlib.sha256(b"deep").hexdigest()
    assert path == repo / "snapshots" / MAIN / "sub/deep/x.safetensors"
    assert os.readlink(path) == f"../../../../blobs/{digest}"
    assert (repo / "blobs" / digest).read_bytes() == b"deep"
    assert (repo / "refs" / "main").read_text() == MAIN
    assert not client.incomplete()


def test_a_small_file_is_named_by_its_git_hash(client):
    path = client.path("model", "org/name", "config.json")
    assert path.read_bytes() == MODEL["config.json"]
    assert path.resolve().name == git_sha1(MODEL["config.json"])


def test_an_empty_file_is_downloaded_too(hub, client):
    hub.files["org/name"]["empty.txt"] = b""
    assert client.path("model", "org/name", "empty.txt").read_bytes() == b""


def test_a_file_name_with_odd_characters_is_asked_for_encoded(hub, client):
    hub.files["org/name"]["a%20b%3Fc.txt"] = b"odd"
    assert client.path("model", "org/name", "a b?c.txt").read_bytes() == b"odd"


def test_huggingface_hub_finds_our_download(hub, client):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    path = client.path("model", "org/name", "model.safetensors")
    theirs = huggingface_hub.hf_hub_download(
        "org/name", "model.safetensors", cache_dir=client.cache, local_files_only=True
    )
    assert pathlib.Path(theirs) == path
    assert huggingface_hub.try_to_load_from_cache("org/name", "model.safetensors", cache_dir=client.cache) == str(path)
    scan = huggingface_hub.scan_cache_dir(client.cache)
    assert not scan.warnings
    assert [repo.repo_id for repo in scan.repos] == ["org/name"]


def test_huggingface_hub_finds_our_data_set(hub, client):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub.files["datasets/org/texts"] = {"a.zip": b"zip"}
    path = client.path("dataset", "org/texts", "a.zip")
    theirs = huggingface_hub.hf_hub_download(
        "org/texts", "a.zip", repo_type="dataset", cache_dir=client.cache, local_files_only=True
    )
    assert pathlib.Path(theirs) == path


def test_we_find_what_huggingface_hub_downloaded(hub, client, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    theirs = huggingface_hub.hf_hub_download(
        "org/name", "model.safetensors", cache_dir=client.cache, endpoint=hub.url(), token=False
    )
    hub.requests.clear()
    assert client.path("model", "org/name", "model.safetensors", HF_HUB_OFFLINE="1") == pathlib.Path(theirs)
    assert not hub.requests
    assert client.path("model", "org/name", "model.safetensors") == pathlib.Path(theirs)
    assert not hub.paths("GET")


def test_both_make_the_same_snapshot(hub, client, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    theirs = tmp_path / "theirs"
    for file in wanted:
        huggingface_hub.hf_hub_download("org/name", file, cache_dir=theirs, endpoint=hub.url(), token=False)
    client.path("model", "org/name")

    def tree(cache):
        root = cache / "models--org--name"
        entries = (path for path in root.rglob("*") if path.is_symlink() or path.is_file())
        return {str(p.relative_to(root)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in entries}

    assert tree(client.cache) == tree(theirs)


def test_a_model_comes_with_what_it_needs_and_no_more(client):
    folder = client.path("model", "org/name")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_sharded_model_brings_the_shards_of_its_index(hub, client):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    hub.files["org/name"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": b"one",
        "model-2.safetensors": b"two",
        "consolidated.safetensors": b"not of the index",
    }
    folder = client.path("model", "org/name")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_model_that_is_whole_asks_for_its_listing_only(hub, client):
    folder = client.path("model", "org/name")
    hub.requests.clear()
    assert client.path("model", "org/name") == folder
    assert [path for _, _, path, _ in hub.requests] == ["/api/models/org/name/revision/main"]


@pytest.mark.parametrize(
    "evil", ["../evil", "/etc/evil.safetensors", "a/../../evil.safetensors", "evil.bin", "evil\n.safetensors", 7]
)
def test_an_index_that_names_files_elsewhere_is_refused(hub, client, evil):
    hub.files["org/name"]["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": evil}}).encode()
    message = client.error(3, "model", "org/name")
    assert "model.safetensors.index.json" in message and "weight_map" in message
    assert not any("evil" in path for _, _, path, _ in hub.requests)


def test_an_index_may_only_name_what_the_repository_has(hub, client):
    hub.files["org/name"]["model.safetensors.index.json"] = b'{"weight_map": {"a": "gone.safetensors"}}'
    assert "gone.safetensors" in client.error(4, "model", "org/name")


def test_unsafe_names_of_the_listing_are_ignored(hub, client):
    hub.listing_files = ["../../tokenizer.json", "/config.json", "config.json", "model.safetensors"]
    folder = client.path("model", "org/name")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("listing", [b"<html>", b"[]", b"{}", b'{"sha": "../..", "siblings": []}'])
def test_a_listing_that_is_none_is_refused(hub, client, listing):
    hub.list = lambda request: hub.reply(request, 200, {}, listing)
    assert "/api/models/org/name" in client.error(3, "model", "org/name")


def test_a_repository_of_gguf_files_says_to_take_one(hub, client):
    hub.files["org/name"] = {"model.Q4_K_M.gguf": b"GGUF"}
    message = client.error(3, "model", "org/name")
    assert "model.Q4_K_M.gguf" in message and "give its path" in message


def test_a_cut_download_is_resumed(hub, client):
    hub.cut_after = [150_000]
    path = client.path("model", "org/name", "model.safetensors")
    assert path.read_bytes() == WEIGHTS
    ranges = [headers.get("Range") for _, method, _, headers in hub.requests if method == "GET"]
    assert ranges == [None, "bytes=150000-"]


def test_a_download_that_breaks_for_good_goes_on_in_the_next_run(hub, client):
    blob = client.repo() / "blobs" / (hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS[:100_000])
    assert client.path("model", "org/name", "model.safetensors").read_bytes() == WEIGHTS
    assert [headers.get("Range") for _, method, _, headers in hub.requests if method == "GET"] == ["bytes=100000-"]
    assert not client.incomplete()


def test_retries_end(hub, client):
    hub.cut_after = [10] * 100
    message = client.error(4, "model", "org/name", "model.safetensors")
    assert "broke" in message and "run again" in message
    assert [path.stat().st_size for path in client.incomplete()] == [60]
    assert len(hub.paths("GET")) == 6


def test_a_server_without_ranges_sends_the_file_again(hub, client):
    hub.cut_after = [150_000]
    hub.ignore_range = True
    assert client.path("model", "org/name", "model.safetensors").read_bytes() == WEIGHTS


def test_a_left_over_longer_than_the_file_is_dropped(hub, client):
    blob = client.repo() / "blobs" / (hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS + b"more")
    assert client.path("model", "org/name", "model.safetensors").read_bytes() == WEIGHTS


def test_a_range_that_is_not_satisfiable_starts_over(hub, client):
    blob = client.repo() / "blobs" / (hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS[:100])
    send, refused = hub.send_file, []

    def refuse_once(request, content, headers):
        if "Range" in request.headers and not refused:
            refused.append(True)
            return hub.reply(request, 416, {"Content-Range": f"bytes */{len(content)}"})
        return send(request, content, headers)

    hub.send_file = refuse_once
    assert client.path("model", "org/name", "model.safetensors").read_bytes() == WEIGHTS
    assert refused


def test_corrupt_content_is_refused_and_deleted(hub, client):
    hub.corrupt = True
    message = client.error(3, "model", "org/name", "model.safetensors")
    assert "checksum" in message and "model.safetensors" in message
    assert not client.incomplete()
    assert not (client.repo() / "snapshots").exists()
    hub.corrupt = False
    assert client.path("model", "org/name", "model.safetensors").read_bytes() == WEIGHTS


def test_a_corrupt_left_over_is_found_out(hub, client):
    blob = client.repo() / "blobs" / (hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(1000))
    assert "checksum" in client.error(3, "model", "org/name", "model.safetensors")
    assert not client.incomplete()


def test_a_corrupt_small_file_is_found_out_by_its_git_hash(hub, client):
    reply = hub.reply

    def garbled(request, status, headers=(), body=b""):
        return reply(request, status, headers, body.replace(b"llama", b"lIama"))

    hub.reply = garbled
    assert "checksum" in client.error(3, "model", "org/name", "config.json")


def test_more_bytes_than_announced_are_refused(hub, client):
    send = hub.send_file

    def longer(request, content, headers):
        return send(request, content + b"x" if request.command == "GET" else content, headers)

    hub.send_file = longer
    assert "more than" in client.error(3, "model", "org/name", "model.safetensors")


def test_missing_files_repositories_and_revisions_are_told_apart(client):
    assert "nothing.bin is not there" in client.error(4, "model", "org/name", "nothing.bin")
    assert "no such repository" in client.error(4, "model", "org/other", "config.json")
    assert "no such revision" in client.error(4, "model", "org/name@v9", "config.json")
    assert "no such repository" in client.error(4, "model", "org/other")


@pytest.mark.parametrize("status", [401, 403])
def test_no_access_is_not_tried_again_and_hints_at_the_token(hub, client, status):
    hub.statuses = [(status, {})] * 10
    message = client.error(4, "model", "org/name", "config.json")
    assert "HF_TOKEN" in message and str(status) in message
    assert len(hub.requests) == 1


def test_the_token_opens_a_gated_repository(hub, client):
    hub.token = "hf_secret"
    message = client.error(4, "model", "org/name", HF_TOKEN="hf_wrong")
    assert "HF_TOKEN" in message and "hf_wrong" not in message
    client.path("model", "org/name", HF_TOKEN="hf_secret")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub, client, status):
    hub.statuses = [(status, {"Retry-After": "0"})] * 3
    assert client.path("model", "org/name", "config.json").read_bytes() == MODEL["config.json"]


def test_an_interrupt_ends_the_wait_for_the_next_attempt(hub, client):
    """How long is waited, Backoff's own tests know."""
    asked = threading.Event()
    answer = hub.answer

    def busy(request, server):
        answer(request, server)
        asked.set()

    hub.answer = busy
    hub.statuses = [(429, {"Retry-After": "60"})] * 2
    process = client.start("model", "org/name", "config.json")
    assert asked.wait(timeout=60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and len(hub.requests) == 1


def test_a_redirect_to_another_host_does_not_get_the_token(hub, client):
    hub.use_cdn = True
    hub.token = "hf_secret"
    hub.cut_after = [1000]
    assert client.path("model", "org/name", "model.safetensors", HF_TOKEN="hf_secret").read_bytes() == WEIGHTS
    tokens = [(server, headers.get("Authorization")) for server, _, _, headers in hub.requests]
    assert {token for server, token in tokens if server == "hub"} == {"Bearer hf_secret"}
    assert [token for server, token in tokens if server == "cdn"] == [None, None]
    # The checksum came from the hub: the other host was not asked for it.
    assert not hub.paths("HEAD", "cdn")


def test_a_renamed_repository_is_followed(hub, client):
    resolve = hub.resolve

    def renamed(request):
        if not request.path.startswith("/org/old/"):
            return resolve(request)
        return hub.reply(request, 307, {"Location": request.path.replace("/org/old/", "/org/name/")})

    hub.resolve = renamed
    assert client.path("model", "org/old", "config.json").read_bytes() == MODEL["config.json"]
    assert client.path("model", "org/old", "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
def test_a_redirect_to_another_protocol_is_not_followed(hub, client, location):
    resolve = hub.resolve

    def redirect(request):
        if request.command == "HEAD":
            return resolve(request)
        return hub.reply(request, 302, {"Location": location})

    hub.resolve = redirect
    assert location in client.error(4, "model", "org/name", "model.safetensors")


def test_endless_redirects_end(hub, client):
    hub.statuses = [(302, {"Location": "/again"})] * 100
    assert "redirected more than" in client.error(4, "model", "org/name", "config.json")


def test_a_server_that_is_no_hub_is_told(hub, client):
    hub.resolve = lambda request: hub.reply(request, 200, {}, b"<html>Please sign in</html>")
    assert "X-Repo-Commit" in client.error(4, "model", "org/name", "config.json")


@pytest.mark.parametrize("etag", ["../../../evil", "a/b", ""])
def test_an_etag_is_no_way_out_of_the_cache(hub, client, etag):
    hub.resolve = lambda request: hub.reply(request, 200, {"X-Repo-Commit": MAIN, "ETag": f'"{etag}"'}, b"x")
    assert "ETag" in client.error(3, "model", "org/name", "config.json")


def test_a_commit_is_no_way_out_of_the_cache(hub, client):
    hub.resolve = lambda request: hub.reply(request, 200, {"X-Repo-Commit": "../../evil", "ETag": '"abc"'}, b"x")
    assert "X-Repo-Commit" in client.error(4, "model", "org/name", "config.json")


def test_a_size_beyond_the_disk_is_refused_before_the_download(hub, client):
    headers = {"X-Repo-Commit": MAIN, "X-Linked-Etag": f'"{"c" * 64}"', "X-Linked-Size": str(1 << 49)}
    hub.resolve = lambda request: hub.reply(request, 200, headers, b"x")
    message = client.error(5, "model", "org/name", "model.safetensors")
    assert "free disk space" in message
    assert not hub.paths("GET")


def test_offline_takes_what_is_there_and_names_what_is_not(hub, client):
    folder = client.path("model", "org/name")
    hub.requests.clear()
    assert client.path("model", "org/name", HF_HUB_OFFLINE="1") == folder
    message = client.error(4, "model", "org/name", "README.md", HF_HUB_OFFLINE="1")
    assert "README.md" in message and "HF_HUB_OFFLINE" in message
    assert "org/other" in client.error(4, "model", "org/other", HF_HUB_OFFLINE="1")
    assert not hub.requests


def test_without_a_network_the_cache_serves(hub, client):
    folder = client.path("model", "org/name")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        process = client.run("model", "org/name", HF_ENDPOINT=nobody)
        assert process.returncode == 0 and process.out == str(folder)
        assert "taken from the cache" in process.err
        assert client.path("model", "org/name", "config.json", HF_ENDPOINT=nobody) == folder / "config.json"
        assert "no connection" in client.error(4, "model", "org/other", HF_ENDPOINT=nobody)


def test_a_commit_in_the_cache_needs_no_hub(hub, client):
    client.path("model", "org/name", "config.json")
    hub.requests.clear()
    client.path("model", f"org/name@{MAIN}", "config.json")
    assert not hub.requests


def test_an_interrupted_model_leaves_the_old_revision_in_force(hub, client):
    """The ref moves only when all files of the new commit are there."""
    refs = client.repo() / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(OLDER)
    del hub.files["org/name"]["model.safetensors"]
    client.error(4, "model", "org/name")
    assert (refs / "main").read_text() == OLDER


def test_an_interrupt_ends_a_stalled_download_and_keeps_what_came(hub, client):
    hub.stall = 100_000
    process = client.start("model", "org/name", "model.safetensors")
    Reader(process.stderr.fileno()).wait_for("note: 100000 bytes are there\n")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert [path.stat().st_size for path in client.incomplete()] == [100_000]
    hub.stall = None
    assert client.path("model", "org/name", "model.safetensors").read_bytes() == WEIGHTS


def test_two_processes_download_a_blob_once(hub, client):
    """The hub sends nothing before the other processes wait for the one that downloads."""
    send, asked, may_send = hub.send_file, threading.Event(), threading.Event()

    def send_when_told(request, content, headers):
        if request.command == "GET":
            asked.set()
            assert may_send.wait(timeout=60)
        return send(request, content, headers)

    hub.send_file = send_when_told
    first = client.start("model", "org/name", "model.safetensors")
    assert asked.wait(timeout=60)
    others = [client.start("model", "org/name", "model.safetensors") for _ in range(2)]
    for other in others:
        Reader(other.stderr.fileno()).wait_for("is being downloaded by another process; waiting for it\n")
    may_send.set()
    for process in (first, *others):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert len(hub.paths("GET")) == 1


def test_wrong_usage_ends_with_2(client):
    for arguments in ([], ["model"], ["model", "name"], ["model", "../x/y"], ["dataset", "org/name"], ["file", "a/b"]):
        client.error(2, *arguments)
    client.error(2, "model", "org/name", "../x")


def test_c4_comes_from_the_hub_once(hub, client, run, tiny_model, tmp_path):
    documents = [make_text(3, seed=seed) for seed in range(30)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    file = "en/c4-validation.00000-of-00008.json.gz"
    hub.files["datasets/allenai/c4"] = {file: gzip.compress(lines.encode())}
    environment = client.environment | {"DYNSLICE_CACHE": str(tmp_path / "cache"), "DYNSLICE_DATA_DIR": ""}
    command = ["eval", tiny_model("llama"), "--ppl", "c4", "--seqlen", "64", "--json"]
    first = run(*command, env=environment).json()
    text = first["provenance"]["text"]
    assert text["split"] == "validation" and text["file"].endswith(f"datasets--allenai--c4/snapshots/{MAIN}/{file}")
    assert text["sha256"] == hashlib.sha256(hub.files["datasets/allenai/c4"][file]).hexdigest()
    hub.requests.clear()
    again = run(*command, env=environment | {"HF_HUB_OFFLINE": "1"}).json()
    assert again["perplexity"] == first["perplexity"] and not hub.requests
    missing = run(*command[:3], "c4:train", env=environment, expect=4).stderr.splitlines()[-1]
    assert "c4/c4-train.00000-of-01024.json.gz" in missing and "--data-dir" in missing
