"""Fetching released files from a server on this machine that damages, cuts, delays and redirects its answers."""

import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
import time

import numpy as np
import pytest

from msg_jax import weights
from msg_jax.convert import bundle, fetch
from msg_jax.convert.bundle import HUB, Network, Released, Variant
from msg_jax.errors import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under every path. `faults` are taken in turn, one per request; afterwards the answers are right."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.content, self.etag, self.ranges = [], CONTENT, '"1"', True
        self.asked: list[tuple[str, int]] = []  # (path, first byte) of every request
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, fault = self.server, self.server.faults.pop(0) if self.server.faults else ""
        begin = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0])[0])
        server.asked.append((self.path, begin))
        if fault.isdecimal():
            self.send_error(int(fault))
            return
        if fault.startswith("http"):
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
            return
        begin = begin if server.ranges else 0
        body = server.content[begin:]
        if begin >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if fault == "damaged":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "short":
            body = body[:100_000]
        with contextlib.suppress(OSError):
            self.wfile.write(body[:50_000] if fault == "stalls" else body)
            self.wfile.flush()
            if fault == "stalls":
                time.sleep(1)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE_SEC", 0)
    monkeypatch.setattr(fetch, "STALL_SEC", 0.3)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def file(server):
    return Released("net.pth", len(CONTENT), MD5, sha256=SHA256, address=f"{server.url}/net.pth")


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_a_file_gets_its_name_and_its_record(server, file, tmp_path):
    seen = []
    found = fetch.fetch(file, tmp_path / "new", lambda done, total: seen.append((done, total)))
    assert found == fetch.Fetched(tmp_path / "new/net.pth", SHA256, "SHA-256", True)
    assert found.path.read_bytes() == CONTENT and seen[-1] == (300_000, 300_000)
    assert names(tmp_path / "new") == {"net.pth", "fetched.json"}
    row = {"address": file.address, "bytes": 300_000, "sha256": SHA256, "checked": "SHA-256"}
    assert json.loads((tmp_path / "new/fetched.json").read_text()) == {"net.pth": row}
    assert not fetch.fetch(file, tmp_path / "new").new and len(server.asked) == 1


@pytest.mark.parametrize("faults, begins", [
    (["short"], [0, 100_000]),  # the connection ends early: continued there
    (["short", "short", "stalls"], [0, 100_000, 200_000, 250_000]),
    (["stalls", "503"], [0, 50_000, 50_000]),
    (["damaged"], [0, 0]),  # nothing of it is kept
    (["short", "damaged"], [0, 100_000, 0]),
])
def test_interrupted_answers_are_continued_and_damaged_ones_repeated(server, file, tmp_path, faults, begins):
    server.faults = faults
    assert fetch.fetch(file, tmp_path).path.read_bytes() == CONTENT
    assert [begin for _, begin in server.asked] == begins


def test_a_file_that_stays_damaged_never_gets_its_name(server, file, tmp_path):
    server.faults = ["damaged"] * 9
    with pytest.raises(UserError, match=r"is not the published net\.pth \(SHA-256 differs"):
        fetch.fetch(file, tmp_path)
    assert len(server.asked) == 2 and names(tmp_path) == set()


@pytest.mark.parametrize("sums, said", [({"sha256": ""}, "MD5 differs"), ({"sha256": "", "md5": ""}, "its size differs")])
def test_every_published_fact_decides(server, file, tmp_path, sums, said):
    server.content = CONTENT[:-20_000]  # a whole answer of another file
    with pytest.raises(UserError, match=said):
        fetch.fetch(Released(**vars(file) | sums), tmp_path)
    assert names(tmp_path) == set()


def test_a_file_without_published_sums_is_recorded_and_held_to_the_record(server, file, tmp_path):
    bare = Released(**vars(file) | {"sha256": "", "md5": "", "bytes": 301_000})
    assert fetch.fetch(bare, tmp_path) == fetch.Fetched(tmp_path / "net.pth", SHA256, "", True)
    assert json.loads((tmp_path / "fetched.json").read_text())["net.pth"]["checked"] is None
    (tmp_path / "net.pth").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="move it away"):
        fetch.fetch(bare, tmp_path)


def test_a_dead_server_ends_in_one_sentence_and_the_next_call_continues(server, file, tmp_path):
    server.faults = ["short"] + ["500"] * 5
    with pytest.raises(UserError, match=r"cannot be read .*0 MB are kept in .*net\.pth\.part, run the command again"):
        fetch.fetch(file, tmp_path)
    assert names(tmp_path) == {"net.pth.part", "net.pth.part.json"}
    server.asked.clear()
    fetch.fetch(file, tmp_path)
    assert [begin for _, begin in server.asked] == [100_000] and names(tmp_path) == {"net.pth", "fetched.json"}


def test_an_interrupted_process_is_continued_where_it_was(server, file, tmp_path):
    def interrupt(done, total):
        if done >= 50_000:
            raise KeyboardInterrupt  # nothing is flushed or tidied up after it, as after a kill

    server.faults = ["stalls"]
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(file, tmp_path, interrupt)
    server.asked.clear()
    assert fetch.fetch(file, tmp_path).path.read_bytes() == CONTENT
    assert [begin for _, begin in server.asked] == [50_000]


def test_a_beginning_is_not_continued_with_another_file(server, file, tmp_path):
    bare = Released(**vars(file) | {"sha256": "", "md5": ""})  # no sum would tell
    server.faults = ["short"] + ["500"] * 5
    with pytest.raises(UserError):
        fetch.fetch(bare, tmp_path)
    server.etag, server.content = '"2"', bytes(reversed(CONTENT))
    server.asked.clear()
    assert fetch.fetch(bare, tmp_path).path.read_bytes() == server.content
    assert [begin for _, begin in server.asked] == [100_000, 0]


def test_a_server_without_ranges_starts_over(server, file, tmp_path):
    server.ranges, server.faults = False, ["short"]
    assert fetch.fetch(file, tmp_path).path.read_bytes() == CONTENT


def test_answers_that_no_second_try_mends_end_at_once(server, file, tmp_path):
    server.faults = ["404"]
    with pytest.raises(UserError, match=r"answers 404 .*net\.pth cannot be fetched there"):
        fetch.fetch(file, tmp_path)
    server.content = b"<html>sign in</html>"
    with pytest.raises(UserError, match=r"has 0 MB, but net\.pth has"):
        fetch.fetch(file, tmp_path)
    assert len(server.asked) == 2 and names(tmp_path) == set()


def test_redirects_are_followed_with_their_range_but_not_away_from_https(server, file, tmp_path):
    server.faults = [f"{server.url}/cdn", "short", f"{server.url}/cdn"]
    assert fetch.fetch(file, tmp_path).path.read_bytes() == CONTENT
    assert server.asked == [("/net.pth", 0), ("/cdn", 0), ("/net.pth", 100_000), ("/cdn", 100_000)]
    with pytest.raises(UserError, match="unencrypted http://a"):
        fetch._Redirects().redirect_request(fetch.urllib.request.Request("https://a"), None, 302, "", {}, "http://a")
    server.faults = [f"{server.url}/net.pth"] * 50
    with pytest.raises(UserError, match="cannot be fetched there"):  # a circle
        fetch.fetch(file, tmp_path / "other")


def test_two_processes_do_not_write_the_same_file(file, tmp_path):
    with fetch._alone(tmp_path / "net.pth.part"), pytest.raises(UserError, match="another process: wait"):
        fetch.fetch(file, tmp_path)


def test_a_refused_connection_is_one_sentence(file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/net.pth"
    with pytest.raises(UserError, match="refused"):
        fetch.fetch(Released(**vars(file) | {"address": address}), tmp_path)


@pytest.fixture
def toy(server, monkeypatch):
    """The variant `toy`: one file on Hugging Face, one elsewhere."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/mirror/")
    facts = dict(md5=MD5, sha256=SHA256, repositories=("a/b",))
    address = f"{HUB}/a/b/resolve/rev/mmaudio_toy.pth"
    on_hub = Released("mmaudio_toy.pth", len(CONTENT), address=address, licence="FREE", **facts)
    elsewhere = Released("words.gz", len(CONTENT), MD5, address=f"{server.url}/words.gz", licence="NOT FREE")
    monkeypatch.setattr(bundle, "VOCABULARY", elsewhere)
    monkeypatch.setitem(bundle.VARIANTS, "toy", Variant(bundle.MMAUDIO_16K, {"mmdit": Network(on_hub, None)}))


def test_get_prints_the_licences_and_fetches_from_the_mirror(server, toy, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        weights.main(["get", "toy", f"--to={tmp_path}"])
    printed = capsys.readouterr()
    assert exit.value.code == 2 and "--accept-licence" in printed.err and not server.asked
    assert "mmaudio_toy.pth (0 MB)\n    FREE" in printed.out and "words.gz (0 MB)\n    NOT FREE" in printed.out
    assert weights.main(["get", "toy", f"--to={tmp_path}", "--accept-licence"]) == 0
    printed = capsys.readouterr()
    assert "--variant=toy" in printed.out and "its MD5 is the published one" in printed.out and "100%" in printed.err
    assert [path for path, _ in server.asked] == ["/mirror/a/b/resolve/rev/mmaudio_toy.pth", "/words.gz"]
    assert weights.main(["get", "toy", f"--to={tmp_path}"]) == 0  # nothing to fetch, nothing to accept
    assert len(server.asked) == 2


def test_get_takes_what_the_cache_of_hugging_face_has(server, toy, tmp_path, monkeypatch, capsys):
    cached = tmp_path / "home/hub/models--a--b/snapshots/1/mmaudio_toy.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert weights.main(["get", "toy", f"--to={tmp_path / 'w'}", "--accept-licence"]) == 0
    assert [path for path, _ in server.asked] == ["/words.gz"] and str(cached) in capsys.readouterr().out


def test_get_refuses_unknown_names_and_small_disks(toy, tmp_path, monkeypatch, capsys):
    for arguments, said in ((["get", "huge"], "choose one of small_16k"), (["get", "toy", f"--to={tmp_path}/x"], "are needed")):
        monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
        with pytest.raises(SystemExit) as exit:
            weights.main([*arguments, "--accept-licence"])
        assert exit.value.code == 2 and said in capsys.readouterr().err


def test_every_file_of_a_variant_has_an_address_at_a_fixed_revision_and_a_licence():
    for name in (*bundle.VARIANTS, "evaluation"):
        for file in weights.files_of(name):
            assert file.licence and file.address.startswith("https://") and file.name.replace("=", "%3D") in file.address
            assert "/main/" not in file.address and (re.search(r"/[0-9a-f]{40}/|/v0\.1/|/3987831/", file.address)), file
            assert all(len(value) in (0, length) for value, length in ((file.md5, 32), (file.sha256, 64)))
