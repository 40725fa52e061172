"""The nodes of ComfyUI, loaded as its loader loads them, with a stand-in for torch and for ComfyUI's progress bar."""

import importlib.util
import pathlib
import sys
import types

import numpy as np
import pytest

import msg_jax
from msg_jax.api import Result
from msg_jax.data import media
from msg_jax.data.frame_grid import FrameGrid

FOLDER = pathlib.Path(__file__).parents[2] / "integrations" / "comfyui"
HZ = 16_000


class Tensor(np.ndarray):
    """What the nodes use of torch.Tensor."""

    def clamp(self, low, high):
        return self.clip(low, high)

    def to(self, dtype):
        return self.astype(dtype)

    def cpu(self):
        return self

    def numpy(self):
        return np.asarray(self)


def tensor(values) -> Tensor:
    return np.asarray(values).view(Tensor)


class System:
    """Stands for a `LoadedSystem`: a ramp for each variant, and what it was asked."""

    def generate(self, video, *, on_progress, **asked):
        self.asked, self.seconds = asked, media.probe(video).duration_sec
        grid = FrameGrid(10.0, 32, 6, choice="training")
        (self.frames,) = media.read_video(video, (grid,), 0.0)
        for share in (0.0, 0.5, 1.0):
            if on_progress:
                on_progress(share)
        samples = round(self.seconds * HZ)
        waveforms = tuple(np.linspace(0, 1 + i, samples, dtype=np.float32) for i in range(asked["variants"]))
        return Result(video, waveforms, HZ, tuple(range(asked["variants"])))


@pytest.fixture
def nodes(monkeypatch):
    """Loads the folder by its path under a made-up name, as ComfyUI does, and returns NODE_CLASS_MAPPINGS."""
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(from_numpy=tensor, uint8=np.uint8))
    name = "custom_nodes_x_msg_jax"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, f"{name}.nodes")
    return module


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI's progress bar and its interrupt."""
    seen = types.SimpleNamespace(values=[], interrupted=False)

    class Bar:
        def __init__(self, total):
            assert total == 100

        def update_absolute(self, value, total=None):
            seen.values.append(value)

    def throw():
        if seen.interrupted:
            raise InterruptedError

    management = types.SimpleNamespace(throw_exception_if_processing_interrupted=throw)
    package = types.SimpleNamespace(utils=types.SimpleNamespace(ProgressBar=Bar), model_management=management)
    monkeypatch.setitem(sys.modules, "comfy", package)
    return seen


def images():
    """0.6 s at 10 pictures a second, each brighter than the last, and beyond 1."""
    return tensor(np.broadcast_to(np.linspace(0, 1.2, 6, dtype=np.float32)[:, None, None, None], (6, 32, 32, 3)))


def run(node, system, **changes):
    """Calls the node as ComfyUI's executor does: every input by its name, with defaults for what is not connected."""
    inputs = {
        name: options[0]["default"] for kind in node.INPUT_TYPES().values() for name, (_, *options) in kind.items() if options
    }
    return getattr(node(), node.FUNCTION)(**inputs | {"system": system, "images": images(), "frame_rate": 10.0} | changes)


def test_every_node_keeps_the_contract(nodes):
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys() == {"MsgJaxLoader", "MsgJaxVideoToAudio"}
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"} and "required" in inputs
        for name, (kind, *options) in ((name, entry) for entries in inputs.values() for name, entry in entries.items()):
            assert kind.isupper() and len(options) <= 1, name
            if kind in ("INT", "FLOAT", "STRING"):
                assert "default" in options[0]
        assert isinstance(node.RETURN_TYPES, tuple) and len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
        assert callable(getattr(node, node.FUNCTION)) and node.CATEGORY
    assert nodes.NODE_CLASS_MAPPINGS["MsgJaxLoader"].RETURN_TYPES[0] == (
        nodes.NODE_CLASS_MAPPINGS["MsgJaxVideoToAudio"].INPUT_TYPES()["required"]["system"][0])


def test_pictures_and_their_rate_become_sound(nodes, comfy):
    system, node = System(), nodes.NODE_CLASS_MAPPINGS["MsgJaxVideoToAudio"]
    (audio,) = run(node, system, prompt="rain", seed=7, variants=2, guidance=1.5)
    assert audio.keys() == {"waveform", "sample_rate"} and audio["sample_rate"] == HZ
    assert audio["waveform"].shape == (2, 1, 9_600) and audio["waveform"].dtype == np.float32
    assert audio["waveform"][:, 0, -1].tolist() == [1, 2]
    assert system.seconds == pytest.approx(0.6) and comfy.values == [0, 50, 100]
    levels = system.frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, [0, 61, 122, 184, 245, 255], atol=4)  # 0.24 x 255 apart, and clipped
    assert system.asked == dict(prompt="rain", negative_prompt="", seed=7, variants=2, steps=None, guidance=1.5)


def test_an_interrupted_prompt_ends_the_work(nodes, comfy):
    comfy.interrupted = True
    with pytest.raises(InterruptedError):
        run(nodes.NODE_CLASS_MAPPINGS["MsgJaxVideoToAudio"], System())


def test_it_works_without_comfys_progress_bar(nodes, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy", None)
    (audio,) = run(nodes.NODE_CLASS_MAPPINGS["MsgJaxVideoToAudio"], System())
    assert audio["waveform"].shape == (1, 1, 9_600)


def test_the_loader_loads_once(nodes, monkeypatch):
    calls = []
    monkeypatch.setattr(msg_jax, "load", lambda source, variant: calls.append((source, variant)) or object())
    loader = nodes.NODE_CLASS_MAPPINGS["MsgJaxLoader"]()
    first, second = (loader.load("weights", "small_16k")[0] for _ in range(2))
    loader.load("run/base")
    assert first is second and calls == [("weights", "small_16k"), ("run/base", None)]
