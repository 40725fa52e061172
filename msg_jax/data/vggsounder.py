"""Which events of a VGGSounder video happen on screen and which off screen (arXiv 2508.08237).

VGGSounder labels VGGSound's test videos anew. A video has several labels, each audible (A), visible (V) or both (AV). Some of
its labels name one event twice; the table `vggsounder_labels.csv` lists them:
  same  both names describe the same source and sound: they count as one;
  kind  the first is a kind of the second: the second does not count beside it.
A part is no kind of the whole, so an orchestra and its violin count twice.
"""

from collections.abc import Iterable, Mapping
import csv
import functools
import importlib.util
import pathlib
from typing import NamedTuple

from msg_jax.errors import UserError

MODALITIES = ("A", "V", "AV")
FLAGS = ("background_music", "static_image", "voice_over")
COLUMNS = ("video_id", "label", "modality", *FLAGS)
TABLE = pathlib.Path(__file__).with_name("vggsounder_labels.csv")


class Merges(NamedTuple):
    """The table of labels that name the same event."""

    same: Mapping[str, str]  # name -> the name that counts
    kinds: Mapping[str, str]  # specific name -> general name


@functools.cache
def merges() -> Merges:
    """Reads the table."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Merges(*({row["label"]: row["of"] for row in rows if row["relation"] == kind} for kind in ("same", "kind")))


def distinct(labels: Iterable[str]) -> set[str]:
    """The labels without the names that count no event of their own."""
    same, kinds = merges()
    names = {same.get(label, label) for label in labels}
    return names - {kinds[name] for name in names if name in kinds}


def onscreen(labels: Mapping[str, str]) -> set[str]:
    """The events that are both audible and visible, of a video with these modalities by label."""
    return distinct(label for label, modality in labels.items() if modality == "AV")


def offscreen(labels: Mapping[str, str]) -> set[str]:
    """The events that are only audible, of a video with these modalities by label.

    Leaves out an event if a visible label has the same name, a more general or a more specific one: its source may be in
    the picture.
    """
    visible = {label for label, modality in labels.items() if modality != "A"}
    seen = {merges().same.get(label, label) for label in visible}
    kinds = merges().kinds
    general = {kinds[name] for name in seen if name in kinds}
    return {event for event in distinct(label for label, modality in labels.items() if modality == "A")
            if event not in seen | general and kinds.get(event) not in seen}


def installed_csv() -> pathlib.Path:
    """The annotation in the package `vggsounder`.

    Raises UserError if the package is not installed.
    """
    spec = importlib.util.find_spec("vggsounder")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = pathlib.Path(folder) / "data" / "vggsounder.csv"
        if path.is_file():
            return path
    raise UserError("The package vggsounder is not installed; run `pip install --no-deps vggsounder==1.0`, or give the path of "
                    "its vggsounder.csv")
