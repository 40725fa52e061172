"""The server by HTTP: the API, who gets which file, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
import http.client
import io
import json
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time
import zipfile

import pytest
import soundfile

from msg_jax.api import Request
from msg_jax.app.studio import Limits
from msg_jax.data import media
from tests.app.serving import HZ, heard_hz, served, tone_hz

pytest.importorskip("gradio", reason="the extra `app` is not installed")

LIMITS = Limits(upload_bytes=1_000_000, video_sec=3, waiting=30)
ME, YOU = "a" * 43, "b" * 43
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "USING.md"


@pytest.fixture(scope="module")
def running():
    with served(LIMITS) as found:
        yield found


@pytest.fixture
def app(running):
    running[2].gate.set()
    running[2].seen.clear()
    yield running
    running[2].gate.set()


def multipart(fields: dict, files: dict[str, tuple[str, bytes]]) -> tuple[bytes, dict]:
    parts = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    for key, (name, content) in files.items():
        head = f'--x\r\nContent-Disposition: form-data; name="{key}"; filename="{name}"\r\nContent-Type: video/mp4\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def ask(url: str, method: str, path: str, body=None, headers=(), session: str = ""):
    """(status, headers, body)."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    cookie = {"Cookie": f"msg_jax_session={session}"} if session else {}
    connection.request(method, path, body, dict(headers) | cookie)
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return found


def generate(url: str, video: tuple[str, bytes] | None = None, **fields):
    body, headers = multipart(fields, {} if video is None else {"video": video})
    return ask(url, "POST", "/generate", body, headers)


def error_of(answer) -> str:
    return json.loads(answer[2])["error"]


def test_the_documented_line_of_curl_makes_the_sound(app, clip, tmp_path):
    if not shutil.which("curl"):
        pytest.skip("curl is not on this machine")
    url, _, tones = app
    (line,) = re.findall(r"^    (curl .*/generate .*)$", DOCUMENT.read_text(), re.MULTILINE)
    shutil.copy(clip, tmp_path / "clip.mp4")
    command = line.replace("http://127.0.0.1:7860", url).replace("curl ", "curl --silent --show-error --fail ")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    waveform, hz = soundfile.read(tmp_path / "clip.wav")
    assert (len(waveform), hz) == (2 * HZ, HZ) and tones.seen == [Request(prompt="glass breaking")]
    assert heard_hz(waveform) == HZ - tone_hz(0, "glass breaking")  # an alias


def test_fields_reach_the_system_and_several_variants_are_an_archive(app, clip):
    url, _, tones = app
    fields = dict(negative_prompt="music", seed=5, variants=2, steps=7, guidance=1.5)
    status, headers, body = generate(url, ("clip.mp4", clip.read_bytes()), **fields)
    assert status == 200 and headers["content-type"] == "application/zip" and tones.seen == [Request(**fields)]
    archive = zipfile.ZipFile(io.BytesIO(body))
    assert archive.namelist() == ["clip_seed5.wav", "clip_seed6.wav"]
    for name, seed in zip(archive.namelist(), (5, 6)):
        assert heard_hz(soundfile.read(io.BytesIO(archive.read(name)))[0]) == tone_hz(seed)


def test_the_answer_may_be_the_video(app, clip, tmp_path):
    status, headers, body = generate(app[0], ("clip.mp4", clip.read_bytes()), seed=2, answer="video")
    assert status == 200 and headers["content-type"] == "video/mp4"
    (tmp_path / "a.mp4").write_bytes(body)
    assert heard_hz(media.read_audio(tmp_path / "a.mp4", 0, HZ, HZ)) == tone_hz(2)


@pytest.mark.parametrize("name", ["../../clip.mp4", "/etc/clip.mp4", "http://host/clip.mp4", "..\\\\clip.mp4", "clip.txt"])
def test_names_that_are_paths_or_addresses_are_refused(app, clip, name):
    url, studio, tones = app
    answer = generate(url, (name, clip.read_bytes()))
    assert answer[0] == 400 and "is not a" in error_of(answer) and not tones.seen
    assert not list(studio.folder.parent.glob("clip.mp4"))
    if name != "clip.txt":
        body, headers = multipart({}, {"files": (name, clip.read_bytes())})
        answer = ask(url, "POST", "/gradio_api/upload", body, headers, ME)
        assert answer[0] == 400 and "is a path or an address" in error_of(answer)


def test_what_cannot_be_used_is_one_sentence(app):
    url, *_ = app
    for answer, said in (
        (generate(url, video=("bad.mp4", b"no video" * 100)), "bad.mp4 cannot be opened as a video"),
        (generate(url, prompt="x", seed="one"), "seed=one is not a number"),
        (generate(url, prompt="x", colour="red"), "colour is not a field"),
        (generate(url, prompt="x", variants=5), "more than the 4"),
        (generate(url), "neither a video nor a prompt"),
        (generate(url, prompt="x", answer="smell"), "answer=smell is neither"),
    ):
        assert answer[0] == 400 and said in error_of(answer)
    body, headers = multipart({"video": "http://host/clip.mp4"}, {})
    answer = ask(url, "POST", "/generate", body, headers)
    assert answer[0] == 400 and "video is text" in error_of(answer)


@pytest.mark.parametrize("path", ["/generate", "/gradio_api/upload"])
def test_a_large_upload_is_refused_before_it_is_sent(app, path):
    """Two GB are announced, and nothing follows."""
    host, port = app[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000000\r\n\r\n".encode())
        answer = b""
        while block := client.recv(4096):
            answer += block
    assert answer.startswith(b"HTTP/1.1 413") and b"larger than the 1 MB that are allowed here" in answer


@pytest.mark.parametrize("path", ["/generate", "/gradio_api/upload"])
def test_a_large_upload_without_a_length_is_refused_on_the_way(app, path):
    sent = 0

    def body():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        while sent < 500_000_000:
            sent += 100_000
            yield bytes(100_000)

    answer = None
    connection = http.client.HTTPConnection(app[0].removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", path, body(), {"Content-Type": "multipart/form-data; boundary=x"}, encode_chunked=True)
    except OSError:  # the server has hung up
        assert sent < 100_000_000
    answer = connection.getresponse() if connection.sock else None
    assert answer is None or answer.status == 413


def test_results_are_served_to_their_session_alone(app, clip):
    url, studio, _ = app
    job = studio.submit(ME, clip, Request())
    assert job.wait(30)
    path = f"/results/{job.result.token}/clip_seed0.wav"
    status, headers, body = ask(url, "GET", path, session=ME)
    assert status == 200 and body == job.result.takes[0].sound.read_bytes() and headers["cache-control"] == "private"
    assert "attachment" in ask(url, "GET", f"{path}?download=1", session=ME)[1]["content-disposition"]
    partial = ask(url, "GET", path, headers={"Range": "bytes=10-19"}, session=ME)
    assert partial[0] == 206 and partial[2] == body[10:20]
    assert [ask(url, "GET", path, session=each)[0] for each in (YOU, "", "short")] == [404, 404, 404]
    assert ask(url, "GET", f"/results/{job.result.token}/..%2f..%2fetc%2fpasswd", session=ME)[0] == 404


def test_uploads_are_served_to_their_session_alone(app, clip):
    url, studio, tones = app
    body, headers = multipart({}, {"files": ("clip.mp4", clip.read_bytes())})
    status, _, answer = ask(url, "POST", "/gradio_api/upload", body, headers, ME)
    (path,) = json.loads(answer)
    assert status == 200 and path.startswith(f"{studio.folder}/uploads/")  # deleted with it
    assert ask(url, "GET", f"/gradio_api/file={path}", session=ME)[2] == clip.read_bytes()
    for wanted, session in ((path, YOU), (path, ""), ("/etc/passwd", ME), ("http://127.0.0.1/x", ME), (__file__, ME)):
        assert ask(url, "GET", f"/gradio_api/file={wanted}", session=session)[0] == 403
    for wanted, session in ((path, YOU), ("/etc/passwd", ME), ("http://127.0.0.1/clip.mp4", ME), (f"{path}/../x", ME)):
        video = {"path": wanted, "meta": {"_type": "gradio.FileData"}}
        data = {"fn_index": 0, "session_hash": "s", "data": [video, "", 1, "", 0, 1, 1]}
        answer = ask(url, "POST", "/gradio_api/queue/join", json.dumps(data), {"Content-Type": "application/json"}, session)
        assert answer[0] == 403 and not tones.seen


def test_other_pages_and_other_routes_are_refused(app):
    url, _, tones = app
    body, headers = multipart({"prompt": "x"}, {})
    assert ask(url, "POST", "/generate", body, headers | {"Origin": "http://evil.example"})[0] == 403 and not tones.seen
    assert ask(url, "POST", "/generate", body, headers | {"Origin": url})[0] == 200
    for path in ("/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/vibe-code/", "/monitoring", "/gradio_api/info", "/docs"):
        assert ask(url, "GET", path)[0] == 404
    cookie = ask(url, "GET", "/config")[1]["set-cookie"]
    assert re.fullmatch(r"msg_jax_session=[\w-]{43}; Path=/; HttpOnly; SameSite=Lax", cookie)


def test_twenty_requests_in_a_row_and_four_at_once_lose_nothing(app):
    url, studio, tones = app
    for seed in range(20):
        assert heard_hz(soundfile.read(io.BytesIO(generate(url, prompt="x", seed=seed)[2]))[0]) == tone_hz(seed, "x")
    tones.gate.clear()
    tones.most_at_once = 0
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(generate, url, prompt="x", seed=seed) for seed in range(4)]
        while len(studio.queue._waiting) < 3:
            time.sleep(0.01)
        tones.gate.set()
        sounds = [soundfile.read(io.BytesIO(answer.result()[2]))[0] for answer in answers]
    assert [heard_hz(sound) for sound in sounds] == [tone_hz(seed, "x") for seed in range(4)] and tones.most_at_once == 1


def test_a_client_that_leaves_ends_its_job(app):
    url, _, tones = app
    tones.gate.clear()
    body, headers = multipart({"prompt": "x"}, {})
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/generate", body, headers)
    while not tones.at_once:
        time.sleep(0.01)
    connection.close()
    for _ in range(500):
        if not tones.at_once:
            break
        time.sleep(0.01)
    assert not tones.at_once and not tones.gate.is_set()


def test_a_full_queue_answers_503(app, monkeypatch):
    url, studio, tones = app
    tones.gate.clear()
    monkeypatch.setattr(studio.queue, "_most", 1)
    threads = [threading.Thread(target=generate, args=(url,), kwargs={"prompt": "x"}) for _ in range(2)]
    for thread in threads:
        thread.start()
        while not tones.at_once:
            time.sleep(0.01)
    while not studio.queue._waiting:
        time.sleep(0.01)
    answer = generate(url, prompt="x")
    tones.gate.set()
    for thread in threads:
        thread.join()
    assert answer[0] == 503 and "jobs are waiting already" in error_of(answer)
