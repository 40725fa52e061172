"""What the user gave is wrong: one exception, and how a command ends on it."""

import sys
from typing import NoReturn


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one sentence that names the file, the field and the remedy. `main` and `generate` print it without a
    traceback and exit with code 2; a batch of files writes it to `skipped.jsonl` and goes on with the next file.
    """


class UnreadableError(UserError):
    """One record of a source cannot be read; its file is `path`. The others can still be used."""

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.row = {"path": path, "reason": reason}  # as in `skipped.jsonl`


def fail(sentence: str) -> NoReturn:
    """Tells what is wrong on stderr and ends the process with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
