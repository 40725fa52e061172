"""Two nodes over the Python API of msg_jax: load a system, and make sound for a batch of pictures.

ComfyUI brings torch; msg_jax does not need it. The nodes only convert: IMAGE is (frames, height, width, 3) in [0, 1], AUDIO is
{"waveform": (variants, 1, samples), "sample_rate": hz}.
"""

import functools
import pathlib
import tempfile

import msg_jax
from msg_jax.data import media_writer

_FILE = "clip.mp4"  # the seed's noise depends on the name


@functools.lru_cache(maxsize=1)
def _loaded(source: str, variant: str):
    return msg_jax.load(source, variant or None)


class MsgJaxLoader:
    """A checkpoint of a run, or a folder of released weights."""

    CATEGORY = "audio/msg_jax"
    FUNCTION = "load"
    RETURN_TYPES = ("MSG_JAX_SYSTEM",)
    RETURN_NAMES = ("system",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"source": ("STRING", {"default": "weights"})},
            "optional": {"variant": ("STRING", {"default": ""})},
        }

    def load(self, source: str, variant: str = ""):
        return (_loaded(source, variant),)


class MsgJaxVideoToAudio:
    """Sound for a batch of pictures, exactly as long as they last."""

    CATEGORY = "audio/msg_jax"
    FUNCTION = "generate"
    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "system": ("MSG_JAX_SYSTEM",),
                "images": ("IMAGE",),
                "frame_rate": ("FLOAT", {"default": 25.0, "min": 1.0, "max": 240.0, "step": 0.001}),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "negative_prompt": ("STRING", {"default": "", "multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1}),
                "variants": ("INT", {"default": 1, "min": 1, "max": 16}),
            },
            "optional": {
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: as the system was evaluated"}),
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 20.0, "step": 0.1,
                                       "tooltip": "0: as the system was evaluated"}),
            },
        }

    def generate(
        self, system, images, frame_rate: float, prompt: str, negative_prompt: str, seed: int, variants: int, steps: int = 0,
        guidance: float = 0.0,
    ):
        import numpy as np
        import torch

        frames = (images[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        with tempfile.TemporaryDirectory() as folder:
            video = pathlib.Path(folder) / _FILE
            video.write_bytes(media_writer.encode_video(frames, frame_rate, np.zeros(1, np.float32), 16_000))
            result = system.generate(
                video, prompt=prompt, negative_prompt=negative_prompt, seed=seed, variants=variants, steps=steps or None,
                guidance=guidance or None, on_progress=_progress(),
            )
        waveform = torch.from_numpy(np.stack(result.waveforms))[:, None]
        return ({"waveform": waveform, "sample_rate": result.hz},)


def _progress():
    """ComfyUI's progress bar, which also ends the work when the user interrupts the prompt; None outside ComfyUI."""
    try:
        from comfy import model_management, utils
    except ImportError:
        return None
    bar = utils.ProgressBar(100)

    def show(share: float) -> None:
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(round(100 * share), 100)

    return show


NODE_CLASS_MAPPINGS = {"MsgJaxLoader": MsgJaxLoader, "MsgJaxVideoToAudio": MsgJaxVideoToAudio}
NODE_DISPLAY_NAME_MAPPINGS = {"MsgJaxLoader": "msg_jax: load", "MsgJaxVideoToAudio": "msg_jax: video to audio"}
