"""The one exception that a command turns into a sentence and exit code 2."""


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one sentence that names the file, the field and the remedy. `main` and `generate` print it without a
    traceback and exit with code 2; a batch of files writes it to `skipped.jsonl` and goes on with the next file.
    """
