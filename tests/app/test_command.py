"""The command `msg-jax app`."""

import socket
import sys
import types

import pytest

from msg_jax import api
from msg_jax.app import command
from msg_jax.errors import UserError
from tests.app.serving import Tones


def test_without_the_extra_it_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as exit:
        command.main(["--checkpoint=run/base"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: the app needs the package uvicorn: pip install 'msg_jax[app]'.\n"


def test_it_listens_on_this_machine_alone_and_leaves_no_files(monkeypatch, capsys):
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `app` is not installed")
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    from msg_jax.app import server

    studios, calls = [], []

    def application(studio):
        studios.append(studio)
        assert studio.folder.is_dir()

    monkeypatch.setattr(server, "application", application)
    monkeypatch.setattr(api, "load", lambda *source: calls.append(source) or Tones())
    serve = lambda config: types.SimpleNamespace(run=lambda: calls.append((config.host, config.port)))  # noqa: E731
    monkeypatch.setattr(uvicorn, "Server", serve)
    monkeypatch.setattr(command.signal, "signal", lambda *handler: None)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(SystemExit) as exit:
            command.main(["--weights=w", f"--port={port}"])
        assert exit.value.code == 2 and f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err
    flags = ["--weights=w", "--variant=small_16k", "--max_mb=3", "--max_sec=5", f"--port={port}"]
    assert command.main(flags) == 0 and command.parser().parse_args(flags[:1]).port == 7860
    assert calls == [("w", "small_16k", None), ("127.0.0.1", port)] and f"http://127.0.0.1:{port}" in capsys.readouterr().out
    assert (studios[0].limits.upload_bytes, studios[0].limits.video_sec) == (3_000_000, 5) and not studios[0].folder.exists()


def test_missing_weights_are_one_sentence(monkeypatch, capsys):
    pytest.importorskip("gradio", reason="the extra `app` is not installed")

    def load(*source):
        raise UserError("w does not exist: `msg-jax weights get small_16k` fetches it")

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(command, "_refuse_busy_port", lambda host, port: None)
    with pytest.raises(SystemExit) as exit:
        command.main(["--weights=w"])
    assert exit.value.code == 2 and capsys.readouterr().err.startswith("error: w does not exist: `msg-jax weights get")
