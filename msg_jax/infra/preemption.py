"""SIGTERM: finish the step or shard at hand, save, exit with code 0."""

import signal
import sys

_requested = False


def install() -> None:
    """From now on SIGTERM is noted instead of ending the process at once."""

    def note(signum, frame):
        global _requested
        _requested = True

    signal.signal(signal.SIGTERM, note)


def requested() -> bool:
    return _requested


def exit_if_requested(what: str) -> None:
    """Called where everything so far is on disk; `what` tells the user where the work stands."""
    if _requested:
        print(f"Stopped by SIGTERM at {what}; the same command continues from here.", file=sys.stderr)
        sys.exit(0)
