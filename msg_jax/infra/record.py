"""`run.json`: what a stage folder says about itself."""

import json
import pathlib

RECORD = "run.json"


def read_record(folder: pathlib.Path) -> dict | None:
    """The record of a stage folder; None if it has none."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.exists() else None
