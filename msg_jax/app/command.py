"""msg-jax app [--FLAG=VALUE ...]
msg-jax app --checkpoint=DIR [--FLAG=VALUE ...]
msg-jax app --weights=DIR [--variant=NAME] [--FLAG=VALUE ...]

Open a page on this machine: drop a video, ask for a sound, compare the variants, take the files. The same address takes
requests: curl -F video=@clip.mp4 -F prompt="glass breaking" http://127.0.0.1:7860/generate -o clip.wav
"""

import argparse
from collections.abc import Sequence
import dataclasses
import signal
import socket
import sys
from typing import Any

from msg_jax.errors import UserError, fail

HOST, PORT = "127.0.0.1", 7860


def parser() -> argparse.ArgumentParser:
    from msg_jax.app.studio import Limits

    usage, _, details = (__doc__ or "").partition("\n\n")
    flags = argparse.ArgumentParser(prog="msg-jax app", usage=usage, description=details, allow_abbrev=False,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    source = flags.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", help="folder of a finished stage: base or a preference arm (default: a small model "
                        "that comes with the package)")
    source.add_argument("--weights", help="folder of released files, as `msg-jax weights get` makes it")
    flags.add_argument("--variant", help="with --weights: small_16k, small_44k, medium_44k, large_44k or large_44k_v2")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), help="as in `msg-jax generate`")
    flags.add_argument("--host", default=HOST, help=f"address to listen on (default: {HOST}, this machine only)")
    flags.add_argument("--port", type=int, default=PORT)
    flags.add_argument("--max_mb", type=float, default=Limits.upload_bytes / 1e6,
                       help="size of an upload (default: %(default)g)")
    flags.add_argument("--max_sec", type=float, default=Limits.video_sec, help="length of a video (default: %(default)g)")
    flags.add_argument("--max_variants", type=int, default=Limits.variants, help="of one request (default: %(default)s)")
    flags.add_argument("--max_waiting", type=int, default=Limits.waiting, help="jobs in the queue (default: %(default)s)")
    return flags


def _refuse_busy_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        fail(f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port, or another --host.")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        import uvicorn  # pyright: ignore[reportMissingImports] comes with gradio

        from msg_jax.app.server import application
    except ImportError as error:
        fail(f"the app needs the package {error.name}: pip install 'msg_jax[app]'.")
    from msg_jax import api
    from msg_jax.app.studio import Limits, Studio
    from msg_jax.infra import logging, runtime

    logging.plain_terminal()
    runtime.use_compile_cache()
    runtime.share_heap()
    _refuse_busy_port(args.host, args.port)
    limits = dataclasses.replace(Limits(), upload_bytes=int(args.max_mb * 1e6), video_sec=args.max_sec,
                                 variants=args.max_variants, waiting=args.max_waiting)
    try:
        studio = Studio(api.load(args.weights or args.checkpoint, args.variant, args.precision), limits)
    except UserError as error:
        fail(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the files are deleted
    server: Any = uvicorn.Server(uvicorn.Config(application(studio), host=args.host, port=args.port, log_config=None))
    print(f"http://{args.host}:{args.port}  (Ctrl+C ends it)", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        studio.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
