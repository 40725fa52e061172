"""python benchmarks/compile_table.py --out=FOLDER [--only=NAME,...] [--limit_sec=1500] [--missing]

Compile the programs of the released systems for the machines of docs/SCALING.md, one after another, and print the table of what
`python -m msg_jax.compile` found. Needs `pip install 'msg_jax[tpu,cuda]'`.

Each row is a process of its own. Its result is FOLDER/NAME.json, its output FOLDER/NAME.log. A row that is there is not
compiled again. A row that takes longer than the limit is left out, and its log says so. `--missing` compiles nothing, prints
the table of what is there, and names the rows that are not.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

LIMIT_SEC = 1500


class Row(NamedTuple):
    """What to compile: the flags of `python -m msg_jax.compile`."""

    name: str
    label: str
    stage: str
    preset: str
    topology: str
    mesh: str = ""
    batch: int = 0
    config: str = "avp_rpo"
    changes: tuple[str, ...] = ()

    def arguments(self, out: pathlib.Path) -> list[str]:
        flags = [f"--config={self.config}:{self.preset}", f"--topology={self.topology}", f"--stage={self.stage}"]
        flags += [f"--mesh={self.mesh}"] if self.mesh else []
        flags += [f"--batch={self.batch}"] if self.batch else []
        return [*flags, *self.changes, f"--json={out}"]


def _base(name: str, preset: str, topology: str, mesh: str, batch: int, *changes: str) -> Row:
    return Row(f"base_{name}", f"base {preset}", "base", preset, topology, mesh, batch, "base", changes)


def _preference(name: str, preset: str, topology: str, mesh: str, batch: int, *changes: str) -> Row:
    adapters = ", adapters of rank 16" if changes else ""
    return Row(f"avp_rpo_{name}", f"AVP-RPO {preset}{adapters}", "avp_rpo", preset, topology, mesh, batch, "avp_rpo", changes)


def _program(name: str, label: str, stage: str, preset: str, topology: str) -> Row:
    return Row(name, label, stage, preset, topology)


_RANK_16 = "--config.preference.lora_rank=16"

ROWS = (
    _base("small_v5e16", "small_16k", "v5e:4x4", "1,16,1", 64),
    _base("small_v6e16", "small_16k", "v6e:4x4", "1,16,1", 64),
    _base("small_v5p64", "small_16k", "v5p:4x4x4", "4,16,1", 64),
    _base("small_h100x8", "small_16k", "cuda:1x1x8", "1,8,1", 64),
    _base("medium_v5e16", "medium_44k", "v5e:4x4", "1,16,1", 64),
    _base("medium_h100x8", "medium_44k", "cuda:1x1x8", "1,8,1", 512),
    _base("large_v5e16", "large_44k_v2", "v5e:4x4", "1,16,1", 64),
    _base("large_v5e256", "large_44k_v2", "v5e:16x16", "8,32,1", 512),
    _base("large_v6e256", "large_44k_v2", "v6e:16x16", "8,32,1", 512),
    _base("large_v5p64", "large_44k_v2", "v5p:4x4x4", "4,16,1", 512),
    _base("large_h100x8", "large_44k_v2", "cuda:1x1x8", "1,8,1", 512),
    _preference("small_v5e16", "small_16k", "v5e:4x4", "1,16,1", 16),
    _preference("medium_v5e16", "medium_44k", "v5e:4x4", "1,16,1", 16),
    _preference("large_v5e16", "large_44k_v2", "v5e:4x4", "1,16,1", 16),
    _preference("large_h100x8", "large_44k_v2", "cuda:1x1x8", "1,8,1", 8),
    _preference("large_lora_h100x8", "large_44k_v2", "cuda:1x1x8", "1,8,1", 8, _RANK_16),
    Row("sf_cavp_v5e16", "SF-CAVP r50", "sf_cavp", "small_16k", "v5e:4x4", "4,4,1", 64, "sf_cavp"),
    Row("sf_cavp_h100", "SF-CAVP r50", "sf_cavp", "small_16k", "cuda:1x1x1", "1,1,1", 64, "sf_cavp"),
    _program("reward_video", "SF-CAVP r50, video", "reward_video", "small_16k", "v5e:2x2"),
    _program("reward_audio", "SF-CAVP r50, sound", "reward_audio", "small_16k", "v5e:2x2"),
    _program("sampler_small", "sampler small_16k, 5 candidates, 25 steps", "sampler", "small_16k", "v5e:2x2"),
    _program("sampler_large", "sampler large_44k_v2, 5 candidates, 25 steps", "sampler", "large_44k_v2", "v5e:2x2"),
    _program("clip_image", "CLIP's images", "clip_image", "small_16k", "v5e:2x2"),
    _program("clip_text", "CLIP's text", "clip_text", "small_16k", "v5e:2x2"),
    _program("synchformer", "Synchformer", "synchformer", "small_16k", "v5e:2x2"),
    _program("codec_encode_16k", "VAE encoder 16 kHz", "codec_encode", "small_16k", "v5e:2x2"),
    _program("codec_decode_16k", "VAE decoder 16 kHz", "codec_decode", "small_16k", "v5e:2x2"),
    _program("codec_decode_44k", "VAE decoder 44.1 kHz", "codec_decode", "large_44k_v2", "v5e:2x2"),
    _program("vocoder_16k", "BigVGAN 16 kHz", "vocoder", "small_16k", "v5e:2x2"),
    _program("vocoder_44k", "BigVGAN 44.1 kHz", "vocoder", "large_44k_v2", "v5e:2x2"),
    _program("vocoder_44k_h100", "BigVGAN 44.1 kHz", "vocoder", "large_44k_v2", "cuda:1x1x1"),
)


def compile_row(row: Row, folder: pathlib.Path, limit_sec: float) -> None:
    """Write NAME.json and NAME.log of a row."""
    with (folder / f"{row.name}.log").open("w") as log:
        command = [sys.executable, "-m", "msg_jax.compile", *row.arguments(folder / f"{row.name}.json")]
        try:
            subprocess.run(command, stdout=log, stderr=log, timeout=limit_sec, check=False)
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {limit_sec:.0f} s\n")


HEAD = ("program", "machine", "mesh", "batch", "GB of a device", "ms: compute", "memory", "links", "padding",
        "more than doubled", "float32", "all-to-alls", "compiled in, core-s")


def line(row: Row, found: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a compiled row."""
    mesh = "({},{},{})".format(*found["mesh"])
    start = (row.label, row.topology, mesh, str(found["batch"]))
    end = f"{found['compile_core_sec']:.0f}"
    if "memory" not in found:
        return (*start, f"does not fit: {found['reason']}", *("-" * 7), end)
    fits = "fits" if found["fits"] else "does not fit"
    seconds = [_milliseconds(value, name == found["bottleneck"]) for name, value in found["seconds"].items()]
    moved = found["collectives"].get("all-to-all", (0, 0))[0]
    padded, float32 = (sum(size for _, size in found[name]) for name in ("padded", "float32"))
    traffic = max(found["traffic"], 1)
    shares = (found["padding"] / traffic, padded / traffic, float32 / max(found["products"], 1))
    percent = (f"{share:.0%}" for share in shares)
    return (*start, f"{found['memory']['peak'] / 1e9:.3g}, {fits}", *seconds, *percent, str(moved), end)


def _milliseconds(seconds: float, longest: bool) -> str:
    text = f"{1e3 * seconds:.3g}" if seconds else "-"
    return f"**{text}**" if longest else text


def table(rows: list[tuple[Row, dict[str, Any]]]) -> str:
    """Markdown; the longest of the three times, which is the prediction, is bold."""
    cells = [HEAD, ("---",) * len(HEAD), *(line(row, found) for row, found in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--limit_sec", type=float, default=LIMIT_SEC)
    parser.add_argument("--missing", action="store_true")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in ROWS if not flags.only or row.name in flags.only.split(",")]
    for row in chosen:
        if not flags.missing and not (flags.out / f"{row.name}.json").exists():
            compile_row(row, flags.out, flags.limit_sec)
    there = [(row, flags.out / f"{row.name}.json") for row in chosen]
    print(table([(row, json.loads(path.read_text())[0]) for row, path in there if path.exists()]))
    missing = [row.name for row, path in there if not path.exists()]
    if missing:
        print(f"not compiled: {', '.join(missing)}")


if __name__ == "__main__":
    main()
