"""Timed prompts: the CSV file, and what fills the time between cues."""

import pytest

from msg_jax.errors import UserError
from msg_jax.inference.cues import Cue, fill, read_cues


def _file(tmp_path, text):
    path = tmp_path / "cues.csv"
    path.write_text(text)
    return path


def test_cues_are_read_in_order_of_time(tmp_path):
    text = 'start,end,prompt,negative_prompt\n1:02.5,70,"a bell, far away",music\n\n0,2.25,rain,\n'
    assert read_cues(_file(tmp_path, text)) == (Cue(0, 2.25, "rain", ""), Cue(62.5, 70, "a bell, far away", "music"))
    assert read_cues(_file(tmp_path, "start,end,prompt\n0,1:00:00,rain\n")) == (Cue(0, 3600, "rain"),)


@pytest.mark.parametrize(("text", "message"), [
    ("begin,end,prompt\n0,1,x\n", "must begin with the line start,end,prompt,negative_prompt"),
    ("start,end,prompt\n", "has no cues"),
    ("start,end,prompt\n0,1,a, b\n", "line 2: 4 values for 3 columns"),
    ("start,end,prompt\n0,1,x\n2,1,y\n", "line 3: the cue ends at 1 s and starts at 2 s"),
    ("start,end,prompt\n0,2,x\n1,3,y\n", "line 3: the cue starts at 1 s, before the last one ends at 2 s"),
    ("start,end,prompt\nzero,2,x\n", "line 2: 'zero' is not a time"),
    ("start,end,prompt\n0,nan,x\n", "line 2: 'nan' is not a time"),
    ("start,end,prompt\n-1,2,x\n", "line 2: '-1' is not a time"),
])
def test_a_mistake_names_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_cues(_file(tmp_path, text))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read"):
        read_cues(tmp_path / "nowhere.csv")


def test_time_without_a_cue_has_the_texts_of_the_whole_clip():
    cues = [Cue(1, 2, "bell"), Cue(2, 3, "rain"), Cue(5, 9, "wind"), Cue(20, 30, "never")]
    rest = Cue(0, 0, "street", "music")
    filled = fill(cues, 8.0, rest)
    assert [(cue.start_sec, cue.end_sec, cue.prompt) for cue in filled] == [
        (0, 1, "street"), (1, 2, "bell"), (2, 3, "rain"), (3, 5, "street"), (5, 8, "wind"),
    ]
    assert filled[0].negative_prompt == "music" and filled[1].negative_prompt == ""
