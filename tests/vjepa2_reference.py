"""python tests/vjepa2_reference.py

Make tests/golden/vjepa2.npz with the publisher's classes in `transformers`: a small V-JEPA 2 with random weights.

Needs PyTorch, torchvision and transformers; the file was made with 2.13.0, 0.29.1 and 5.24.0. The tests read it and need none
of them. It holds

    config              of `VJEPA2Config`, as JSON
    param/NAME          every tensor of `VJEPA2Model`, with those of the predictor, by its name; float16
    in/pixels           random frames (1, T, H, W, 3) as the encoder sees them; float16
    out/tokens          `last_hidden_state` for them
    in/video            random uint8 frames (1, T, H, W, 3)
    out/pixels          what `VJEPA2VideoProcessor` makes of them, channels last
"""

import json
import pathlib

import numpy as np

CONFIG = dict(  # heads of 14 features: 4 for each axis of the rotation and 2 that are not rotated, as 4 of the released 64
    hidden_size=28, num_hidden_layers=2, num_attention_heads=2, crop_size=28, patch_size=7, frames_per_clip=6, tubelet_size=2,
    pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1, pred_num_mask_tokens=1,
)
FRAMES, VIDEO_FRAMES, VIDEO_PX = 6, 2, 40


def main():
    import torch
    from transformers import VJEPA2Config, VJEPA2Model, VJEPA2VideoProcessor

    rng = np.random.default_rng(0)
    model = VJEPA2Model(VJEPA2Config(**CONFIG)).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        values = 0.3 * rng.normal(size=tensor.shape) + (name.endswith("weight") and tensor.ndim == 1)
        state[name] = values.astype(np.float16)
    model.load_state_dict({name: torch.tensor(values.astype(np.float32)) for name, values in state.items()})
    px = CONFIG["crop_size"]
    pixels = rng.normal(size=(1, FRAMES, px, px, 3)).astype(np.float16)
    video = rng.integers(0, 256, (1, VIDEO_FRAMES, VIDEO_PX, VIDEO_PX, 3), np.uint8)
    with torch.no_grad():
        channels_first = torch.tensor(np.moveaxis(pixels, -1, 2).astype(np.float32))
        tokens = model(channels_first, skip_predictor=True).last_hidden_state.numpy()
        prepared = VJEPA2VideoProcessor(crop_size=px)(list(torch.tensor(np.moveaxis(video, -1, 2))), return_tensors="pt")
    found = {f"param/{name}": values for name, values in state.items()} | {
        "config": json.dumps(CONFIG), "in/pixels": pixels, "out/tokens": tokens, "in/video": video,
        "out/pixels": np.moveaxis(prepared["pixel_values_videos"].numpy(), 2, -1),
    }
    np.savez_compressed(pathlib.Path(__file__).parent / "golden" / "vjepa2.npz", **found)


if __name__ == "__main__":
    main()
