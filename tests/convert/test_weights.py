"""Conversion tables name every tensor that does not fit; the reader of checkpoints builds tensors and nothing else."""

import collections
import os
import zipfile

import chex
from golden_files import MMDIT, load, weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from torch_files import Rebuild, Storage, tensor, write_legacy, write_torch

from msg_jax.convert import from_torch
from msg_jax.convert.mmdit import preset_of
from msg_jax.convert.weights import Entry, fill, kernel, read_checkpoint
from msg_jax.errors import UserError
from msg_jax.models.mmdit import PRESETS


def test_kernel_moves_channels_last():
    assert kernel(np.zeros((5, 3))).shape == (3, 5)
    conv = np.arange(24).reshape(2, 3, 4)  # out, in, k
    assert kernel(conv).shape == (4, 3, 2) and kernel(conv)[1, 2, 0] == conv[0, 2, 1]


def test_fill_combines_tensors_and_ignores_known_unused_ones():
    shapes = {"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    entries = [Entry("params/w", ("a", "b"), lambda a, b: a * b), Entry(None, "counter")]
    tensors = {"a": np.array([1, 2], np.float16), "b": np.array([3, 4], np.float16), "counter": np.zeros(())}
    filled = fill(entries, tensors, shapes)["params"]["w"]
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled, [3, 8])


def test_fill_lists_every_problem_at_once():
    shapes = {"params": {name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in ("w", "v", "forgotten")}}
    entries = [Entry("params/w", "a"), Entry("params/v", "b"), Entry("params/nowhere", "c")]
    with pytest.raises(UserError) as error:
        fill(entries, {"a": np.zeros(3), "c": np.zeros(2), "stray": np.zeros(1)}, shapes, source="x.pth")
    for part in (
        "x.pth", "5 tensors disagree", "a gives (3,) instead of (2,)", "b is missing",
        "c maps to params/nowhere, which the network does not have", "stray is unknown", "params/forgotten has no tensor",
    ):
        assert part in str(error.value)


def test_mmdit_misfits_are_named():
    tensors = weights(load("mmdit_v1")[0])
    tensors["latent_avg"] = tensors.pop("latent_mean")
    tensors["t_embed.mlp.0.weight"] = tensors["t_embed.mlp.0.weight"].T
    with pytest.raises(UserError) as error:
        from_torch("mmdit", tensors, MMDIT, source="toy.pth")
    for part in ("toy.pth", "latent_avg is unknown", "latent_mean is missing", "t_embed.mlp.0.weight gives (16, 256)"):
        assert part in str(error.value)


def test_mmdit_ignores_tensors_that_are_computed():
    tensors, computed = weights(load("mmdit_v1")[0]), ("t_embed.freqs", "latent_rot", "clip_rot")
    expected = from_torch("mmdit", tensors, MMDIT)[1]
    chex.assert_trees_all_equal(from_torch("mmdit", tensors | dict.fromkeys(computed, np.ones(3)), MMDIT)[1], expected)


def test_mmdit_preset_is_inferred_from_the_tensors():
    def outline(channels, hidden, joint, fused, v2):
        names = [f"joint_blocks.{i}.x" for i in range(joint)] + [f"fused_blocks.{i}.x" for i in range(fused)]
        names.append(f"clip_input_proj.{2 if v2 else 1}.w1.weight")
        return {"audio_input_proj.0.weight": np.empty((hidden, channels, 7)), **dict.fromkeys(names, np.empty(0))}

    assert preset_of(outline(20, 448, 4, 8, False), "f") is PRESETS["small_16k"]
    assert preset_of(outline(40, 896, 4, 8, False), "f") is PRESETS["medium_44k"]
    assert preset_of(outline(40, 896, 7, 14, False), "f") is PRESETS["large_44k"]
    assert preset_of(outline(40, 896, 7, 14, True), "f") is PRESETS["large_44k_v2"]
    with pytest.raises(UserError, match=r"toy\.pth fits no released MM-DiT"):
        from_torch("mmdit", weights(load("mmdit_v1")[0]), source="toy.pth")


def test_unknown_kind_and_preset():
    with pytest.raises(UserError, match="unknown kind of network 'gan'"):
        from_torch("gan", {})
    with pytest.raises(UserError, match="unknown preset 'huge'"):
        from_torch("mmdit", {}, "huge")


def test_reads_torch_files(tmp_path):
    """Shared storages, a transposed view, half and bfloat16, a parameter, nested dictionaries, values that are not tensors."""
    floats, halves = np.arange(6, dtype=np.float32), np.array([0.5, -2.0], np.float16)
    brains = np.array([1.5, 3.0], jnp.bfloat16)
    shared = Storage("FloatStorage", "0")
    content = {
        "epoch": 7, "note": "x",
        "model": collections.OrderedDict(
            rows=tensor(shared, 0, (2, 3), (3, 1)), columns=tensor(shared, 0, (3, 2), (1, 3)),
            tail=tensor(shared, 4, (2,), (1,)), scalar=tensor(shared, 5, (), ()),
            empty=tensor(shared, 0, (0, 3), (3, 1)),
            half=tensor(Storage("HalfStorage", "1"), 0, (2,), (1,)),
            brain=Rebuild(
                tensor(Storage("BFloat16Storage", "2"), 0, (2,), (1,)), True, collections.OrderedDict(),
                function=("torch._utils", "_rebuild_parameter"),
            ),
        ),
    }
    path = write_torch(tmp_path / "x.pth", content, {"0": floats, "1": halves, "2": brains})
    tensors = read_checkpoint(path)
    expected = dict(
        rows=floats.reshape(2, 3), columns=floats.reshape(2, 3).T, tail=[4, 5], scalar=5, empty=np.zeros((0, 3)),
        half=halves, brain=brains,
    )
    assert tensors.keys() == {f"model.{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[f"model.{name}"], value)
    assert tensors["model.brain"].dtype == jnp.bfloat16


@pytest.mark.parametrize("function", [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "load")])
def test_torch_files_cannot_call_anything(tmp_path, function):
    marker = tmp_path / "marker"
    path = write_torch(tmp_path / "x.pt", {"a": Rebuild(f"touch {marker}", function=function)}, {})
    with pytest.raises(UserError, match=rf"it refers to {function[0]}\.{function[1]}"):
        read_checkpoint(path)
    assert not os.path.exists(marker)


@pytest.mark.parametrize(
    "offset, size, stride", [(0, (7,), (1,)), (5, (2,), (1,)), (0, (2, 2), (5, 2)), (-1, (1,), (1,))]
)
def test_tensors_stay_inside_their_storage(tmp_path, offset, size, stride):
    content = {"a": tensor(Storage("FloatStorage", "0"), offset, size, stride)}
    path = write_torch(tmp_path / "x.pth", content, {"0": np.zeros(6, np.float32)})
    with pytest.raises(UserError, match="outside its storage"):
        read_checkpoint(path)


def test_other_formats_and_other_files(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    safetensors.flax.save_file({**{k: jnp.asarray(v) for k, v in arrays.items()}, "c": jnp.ones(1, jnp.bfloat16)},
                               tmp_path / "x.safetensors")
    for name in ("x.npz", "x.safetensors"):
        tensors = read_checkpoint(tmp_path / name)
        for key, array in arrays.items():
            np.testing.assert_array_equal(tensors[key], array)
    assert tensors["c"].dtype == jnp.bfloat16

    (tmp_path / "old.pth").write_bytes(b"not a zip")
    (tmp_path / "x.ckpt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "empty.pth", "w"):
        pass
    write_torch(tmp_path / "big.pth", {}, {}, byteorder=b"big")
    for name, message in {
        "absent.pth": "not a file", "old.pth": "neither a PyTorch zip", "x.ckpt": "unknown suffix '.ckpt'",
        "empty.pth": "0 files named data.pkl", "big.pth": "big-endian",
    }.items():
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / name)


def test_reads_torch_files_of_the_older_format(tmp_path):
    floats, longs = np.arange(6, dtype=np.float32), np.arange(4)
    content = {"model": {
        "columns": tensor(Storage("FloatStorage", "a"), 0, (3, 2), (1, 3)),
        "tail": tensor(Storage("FloatStorage", "a"), 4, (2,), (1,)),
        "whole": tensor(Storage("LongStorage", "b"), 0, (4,), (1,)),
    }, "iteration": 7}
    path = write_legacy(tmp_path / "x.pth", content, {"a": floats, "b": longs})
    tensors = read_checkpoint(path)
    np.testing.assert_array_equal(tensors["model.columns"], floats.reshape(2, 3).T)
    np.testing.assert_array_equal(tensors["model.tail"], [4, 5])
    np.testing.assert_array_equal(tensors["model.whole"], longs)
    assert len(tensors) == 3

    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:-3])
    huge = write_legacy(tmp_path / "huge.pth", content, {"a": floats, "b": longs}, sizes={"a": 10**15, "b": 4})
    other = write_legacy(tmp_path / "other.pth", content, {"a": floats, "b": longs}, magic=7)
    call = write_legacy(tmp_path / "call.pth", {"a": Rebuild("touch marker", function=("os", "system"))}, {})
    for bad, words in (
        (cut, "truncated"), (huge, "larger than the file"), (other, "magic number is wrong"), (call, r"os\.system"),
    ):
        with pytest.raises(UserError, match=words):
            read_checkpoint(bad)
