"""`run.json`: the record of a stage folder."""

import json
import pathlib

from msg_jax.errors import UserError

RECORD = "run.json"


def read_record(folder: pathlib.Path) -> dict | None:
    """Reads the record of a stage folder; None if it has none. Raises UserError if it is damaged."""
    path = folder / RECORD
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or delete {folder} to make the stage again.") from error
