import collections
import csv
import hashlib
import importlib.util
import json
import pathlib
import re

import pytest

from msg_jax.data import multi_event, vggsounder
from msg_jax.errors import UserError

DOCS = pathlib.Path(__file__).parents[2] / "docs"
CSV_SHA256 = "400979ea3dee34bed145d3fd96966e16689352df63b645c4730caf8eb2cacb06"  # vggsounder.csv of version 1.0
LISTS = {  # file: flags, clips, digest of the ids, clips by number of events
    "vggsounder_multi_event.txt": (
        [], 3774, "cb3fec59aed7fe37b9bd665926807beae7ca78a2831904a83560069061ab8460",
        {"2": 2381, "3": 875, "4": 307, "5": 122, "6": 52, "7": 25, "8": 5, "9": 2, "10": 3, "11": 1, "13": 1}),
    "vggsounder_offscreen.txt": (
        ["--offscreen", "--min_classes=1"], 3593, "02614faee649dd2d5b217ce6fc6a9499ccd6ab120a58d7757b55d4d697173229",
        {"1": 2407, "2": 814, "3": 282, "4": 53, "5": 27, "6": 8, "7": 2}),
}
ROWS = """video_id,label,modality,background_music,static_image,voice_over
two_______0_000001,dog barking,AV,False,False,False
two_______0_000001,"male speech, man speaking",AV,False,False,False
two_______0_000001,people crowd,A,False,False,False
seen______0_000001,dog barking,AV,False,False,False
seen______0_000001,cat meowing,V,False,False,False
music_____0_000001,dog barking,AV,True,False,False
music_____0_000001,cat meowing,AV,True,False,False
music_____0_000001,people crowd,A,True,False,False
still_____0_000001,dog barking,AV,False,True,False
still_____0_000001,cat meowing,AV,False,True,False
voice_____0_000001,dog barking,AV,False,False,True
voice_____0_000001,cat meowing,AV,False,False,True
"""


@pytest.fixture
def annotation(tmp_path):
    path = tmp_path / "vggsounder.csv"
    path.write_text(ROWS)
    return path


@pytest.mark.parametrize(("labels", "expected"), [
    (["dog barking", "dog bow-wow"], {"dog barking"}),
    (["playing tympani"], {"playing timpani"}),
    (["duck quacking", "bird squawking"], {"duck quacking"}),
    (["duck quacking", "goose honking", "bird squawking"], {"duck quacking", "goose honking"}),
    (["bull bellowing", "cow lowing", "cattle mooing"], {"bull bellowing"}),  # a kind of a name that has a synonym
    (["bull bellowing", "cow lowing"], {"bull bellowing"}),
    (["orchestra", "playing violin, fiddle"], {"orchestra", "playing violin, fiddle"}),
])
def test_names_of_the_same_event_count_once(labels, expected):
    assert vggsounder.distinct(labels) == expected


@pytest.mark.parametrize(("labels", "expected"), [
    ({"dog barking": "AV", "people crowd": "A"}, {"people crowd"}),
    ({"dog barking": "AV", "dog bow-wow": "A"}, set()),
    ({"duck quacking": "AV", "bird squawking": "A"}, set()),
    ({"duck quacking": "A", "bird squawking": "V"}, set()),
    ({"duck quacking": "AV", "goose honking": "A", "bird squawking": "A"}, {"goose honking"}),
])
def test_an_event_is_off_screen_if_nothing_visible_may_be_its_source(labels, expected):
    assert vggsounder.offscreen(labels) == expected


def test_the_rule_by_hand(annotation, tmp_path):
    out = tmp_path / "ids.txt"
    assert multi_event.main([str(annotation), f"--out={out}"]) == 0
    assert multi_event.read_list(out) == {"two_______0_000001": 2}
    header = out.read_text().splitlines()
    for line in ("# labels: audible and visible; no background_music, static_image, voice_over", "# clips: 1 of 5",
                 '# clips by number of classes: {"2": 1}'):
        assert line in header
    assert multi_event.main([str(annotation), f"--out={out}", "--overwrite", "--offscreen", "--min_classes=1"]) == 0
    assert multi_event.read_list(out) == {"two_______0_000001": 1}
    assert "# labels: audible only; no background_music, static_image, voice_over" in out.read_text().splitlines()


@pytest.mark.parametrize(("before", "after", "arguments", "words"), [
    ("cat meowing,V,", "cat meowing,B,", [], ["line 6", "'B'", "A, V or AV"]),
    ("cat meowing,V,False", "cat meowing,V,no", [], ["line 6", "no, False, False"]),
    ("", "", ["--split=test"], ["no splits", "--split"]),
    ("", "", ["--kinds=overlap"], ["--kinds=classes"]),
    ("video_id", "id", [], ["id,label,modality", "add them"]),
    (ROWS, "id,class,onset,offset\na,dog,0,1\n", ["--offscreen"], ["--offscreen", "VGGSounder"]),
])
def test_a_mistake_is_one_sentence(annotation, tmp_path, capsys, before, after, arguments, words):
    annotation.write_text(ROWS.replace(before, after))
    with pytest.raises(SystemExit) as stop:
        multi_event.main([str(annotation), f"--out={tmp_path / 'ids.txt'}", *arguments])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and all(word in error for word in words), error


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        multi_event.main(["vggsounder", f"--out={tmp_path / 'ids.txt'}"])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and "pip install" in error


def test_the_table_has_one_level():
    with vggsounder.TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    same, kinds = vggsounder.merges()
    assert len(rows) == len(same) + len(kinds) == len(same.keys() | kinds.keys())
    assert not set(same) & {*same.values(), *kinds.values()} and not set(kinds) & set(kinds.values())


@pytest.mark.parametrize("name", LISTS)
def test_a_published_list_has_its_hash_and_counts(name):
    _, clips, digest, counts = LISTS[name]
    ids = multi_event.read_list(DOCS / name)
    assert len(ids) == clips and multi_event.list_digest(list(ids)) == digest
    assert collections.Counter(map(str, ids.values())) == counts
    assert all(re.fullmatch(r"[\w-]{11}_\d{6}", each) for each in ids)
    header = [line for line in (DOCS / name).read_text().splitlines() if line.startswith("#")]
    assert f"# clips: {clips} of 12014" in header and f"# clips by number of classes: {json.dumps(counts)}" in header
    table = hashlib.sha256(vggsounder.TABLE.read_bytes()).hexdigest()
    assert f"# merged labels: {vggsounder.TABLE.name}, sha256 {table}" in header, "the table changed: make the list again"


@pytest.fixture(scope="module")
def published():
    try:
        path = vggsounder.installed_csv()
    except UserError as error:
        pytest.skip(str(error))
    if hashlib.sha256(path.read_bytes()).hexdigest() != CSV_SHA256:
        pytest.skip("The installed vggsounder is not version 1.0")
    return path


@pytest.mark.parametrize("name", LISTS)
def test_the_package_gives_the_published_list_bit_for_bit(published, tmp_path, name):
    out = tmp_path / name
    assert multi_event.main(["vggsounder", f"--out={out}", *LISTS[name][0]]) == 0
    assert out.read_bytes() == (DOCS / name).read_bytes()


def test_the_package_has_the_known_counts(published, monkeypatch, tmp_path):
    with published.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), len({row["video_id"] for row in rows})) == (29509, 12014)
    assert {*vggsounder.merges().same, *vggsounder.merges().kinds} < {row["label"] for row in rows}
    monkeypatch.setattr(vggsounder, "merges", lambda: vggsounder.Merges({}, {}))
    assert len(multi_event.select(multi_event.read_vggsounder(published), multi_event.Rule())) == 4160
    unflagged = tmp_path / "unflagged.csv"
    unflagged.write_text(published.read_text().replace("True", "False"))
    assert len(multi_event.select(multi_event.read_vggsounder(unflagged), multi_event.Rule())) == 5163
