import hashlib

import pytest

from msg_jax.data import multi_event
from msg_jax.data.multi_event import Event, Rule
from msg_jax.errors import UserError

TIMES = """id,class,onset,offset
solo,dog,0.0,1.0
twice,dog,0.0,0.2
twice,dog,0.7,0.9
together,dog,0.0,2.0
together,cat,1.5,3.0
change,dog,0.0,2.0
change,cat,2.05,3.0
touch,dog,1.0,2.0
touch,cat,1.95,3.0
"""
LABELS = """--0PQM4-hqg,30,"waterfall burbling, close",train
-1LrH01Ei1w,95,people whistling,test
-1LrH01Ei1w,95,dog barking,test
-3Kv4fdm7Uk,30,bouncing on trampoline,test
"""


@pytest.fixture
def times(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(TIMES)
    return path


@pytest.mark.parametrize(("kinds", "expected"), [
    (("classes",), ["change", "together", "touch"]),
    (("events",), ["change", "together", "touch", "twice"]),
    (("overlap",), ["together"]),  # touch overlaps by 0.05 s
    (("transition",), ["change", "touch"]),
])
def test_each_kind_by_hand(times, kinds, expected):
    assert multi_event.select(multi_event.read_events(times), Rule(kinds)) == expected


def test_any_and_all_of_the_kinds(times):
    clips = multi_event.read_events(times)
    assert multi_event.select(clips, Rule(("overlap", "transition"))) == ["change", "together", "touch"]
    assert multi_event.select(clips, Rule(("overlap", "transition"), match="all")) == []


def test_separated_counts_the_most_events_that_are_apart():
    onsets = [Event("a", second, second + 0.1) for second in (0.0, 0.3, 0.5, 0.9, 1.1)]
    assert multi_event.separated(onsets, 0.5) == 3  # 0.0, 0.5, 1.1
    assert multi_event.separated(onsets, 0.0) == 5


def test_the_list_records_its_rule_and_digest(times, tmp_path, capsys):
    out = tmp_path / "ids.txt"
    assert multi_event.main([str(times), f"--out={out}", "--kinds=events,overlap", "--min_gap_sec=0.6"]) == 0
    text = out.read_text()
    ids = [line for line in text.splitlines() if not line.startswith("#")]
    assert ids == ["twice", "change", "together", "touch"]  # by number of classes
    assert multi_event.read_list(out) == {"change": 2, "together": 2, "touch": 2, "twice": 1}
    digest = hashlib.sha256(b"change\ntogether\ntouch\ntwice\n").hexdigest()
    for line in (
        "# rule: any of events, overlap", '# parameters: {"min_events": 2, "min_gap_sec": 0.6, "min_overlap_sec": 0.1}',
        f"# annotation: events.csv, sha256 {hashlib.sha256(TIMES.encode()).hexdigest()}", "# clips: 4 of 5", "# events: 4",
        "# overlap: 1",
        f"# sha256 of the list: {digest}",
    ):
        assert line in text.splitlines()
    again = tmp_path / "again.txt"
    shuffled = tmp_path / "shuffled" / "events.csv"
    shuffled.parent.mkdir()
    head, *rows = TIMES.splitlines()
    shuffled.write_text("\n".join([head, *reversed(rows)]))
    multi_event.main([str(shuffled), f"--out={again}", "--kinds=events,overlap", "--min_gap_sec=0.6"])
    assert multi_event.read_list(again) == multi_event.read_list(out)
    out.write_text(text.replace("twice", "thrice"))
    with pytest.raises(UserError, match="was changed"):
        multi_event.read_list(out)


def test_a_list_without_sections_counts_no_classes(tmp_path):
    (tmp_path / "ids.txt").write_text("# mine\nb\n\na\n")
    assert multi_event.read_list(tmp_path / "ids.txt") == {"a": None, "b": None}


def test_labels_of_a_split(tmp_path):
    path = tmp_path / "vggsound.csv"
    path.write_text(LABELS)
    clips, form = multi_event.read_annotation(path, "test")
    assert form == "labels" and set(clips) == {"-1LrH01Ei1w_000095", "-3Kv4fdm7Uk_000030"}
    assert multi_event.select(clips, Rule()) == ["-1LrH01Ei1w_000095"]
    path.write_text("id,start,label,split\n" + LABELS)
    assert multi_event.read_annotation(path, "test")[0] == clips


@pytest.mark.parametrize(("text", "arguments", "words"), [
    ("id,class,onset,offset\na,dog,2,1\n", [], ["line 2", "onset '2'"]),
    ("id,class,onset,offset\na,dog,2\n", [], ["line 2", "3 values"]),
    ("name,value\na,1\n", [], ["name,value", "id, start, label, split"]),
    ("", [], ["is empty"]),
    (LABELS, ["--kinds=overlap"], ["--kinds=classes"]),
    (TIMES, ["--kinds=loud"], ["'loud'", "transition"]),
    (TIMES, ["--split=test"], ["--split"]),
])
def test_a_mistake_is_one_sentence(tmp_path, capsys, text, arguments, words):
    path = tmp_path / "annotation.csv"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        multi_event.main([str(path), f"--out={tmp_path / 'ids.txt'}", *arguments])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and all(word in error for word in words), error
    assert not (tmp_path / "ids.txt").exists()


def test_a_list_is_overwritten_only_on_request(times, tmp_path):
    out = tmp_path / "ids.txt"
    out.write_text("mine")
    with pytest.raises(SystemExit):
        multi_event.main([str(times), f"--out={out}"])
    assert out.read_text() == "mine"
    assert multi_event.main([str(times), f"--out={out}", "--overwrite"]) == 0
