"""Errors in user input, and how a command exits on them."""

import sys
from typing import NoReturn


class UserError(Exception):
    """Invalid user input.

    The message is one sentence that names the file, the field and the remedy. `main` and `generate` print it without a
    traceback and exit with code 2. A batch of files records it in `skipped.jsonl` and continues with the next file.
    """


class UnreadableError(UserError):
    """One record of a source, stored in the file `path`, cannot be read; the other records remain usable."""

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.row = {"path": path, "reason": reason}  # as in `skipped.jsonl`


def fail(sentence: str) -> NoReturn:
    """Print the error to stderr and exit with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
