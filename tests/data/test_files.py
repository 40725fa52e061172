"""Finding files behind links, and files that are never half made."""

import os

import pytest

from msg_jax.data import files
from msg_jax.errors import UserError


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def found(root):
    paths, unlisted = files.find_files(root, (".mp4",))
    assert unlisted == []
    return [path.relative_to(root).as_posix() for path in paths]


def test_links_are_followed_once_and_never_in_circles(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    make(root, "b/x.mp4", "y.MP4", "notes.txt", ".hidden.mp4", ".trash/z.mp4")
    make(other, "far.mp4", "deep/deeper.mp4")
    (root / "a").symlink_to(root / "b")  # its own name wins over a link's that is sorted before it
    (root / "b" / "loop").symlink_to(root)
    (root / "b" / "above").symlink_to(tmp_path)
    (root / "link").symlink_to(other)
    (other / "back").symlink_to(root / "b")
    (other / "self").symlink_to(other)
    (root / "file.mp4").symlink_to(other / "far.mp4")
    (root / "broken.mp4").symlink_to(tmp_path / "nowhere")
    (root / "folder.mp4").mkdir()
    assert found(root) == ["b/x.mp4", "broken.mp4", "file.mp4", "link/deep/deeper.mp4", "link/far.mp4", "y.MP4"]
    (tmp_path / "way").symlink_to(root)
    assert found(tmp_path / "way") == found(root)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    make(tmp_path, "a/x.mp4", "b/y.mp4")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    paths, (row,) = files.find_files(tmp_path, (".mp4",))
    assert [path.name for path in paths] == ["y.mp4"]
    assert row["path"] == str(tmp_path / "a") and "a cannot be listed (Permission denied)" in row["reason"]


NAMES = ["x" * 251 + ".mp4", "\u9577" * 80 + ".mp4", os.fsdecode(b"caf\xe9.mp4"), "-26aVY.mp4", "a:b.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_a_new_file_may_have_any_name(tmp_path, name):
    with files.new_file(tmp_path / name, overwrite=False) as unfinished:
        unfinished.write_text("new")
        assert os.listdir(tmp_path) == [unfinished.name] and unfinished.suffix == ".mp4"
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(UserError, match="exists already"), files.new_file(tmp_path / name, overwrite=False):
        pass
    with pytest.raises(RuntimeError), files.new_file(tmp_path / name, overwrite=True) as unfinished:
        unfinished.write_text("other")
        raise RuntimeError
    assert (tmp_path / name).read_text() == "new" and os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name, fault", [("x" * 260 + ".mp4", "File name too long"), ("file/x.mp4", "File exists")])
def test_a_file_that_cannot_be_written(tmp_path, name, fault):
    make(tmp_path, "file")
    with pytest.raises(UserError, match=rf"cannot be written \({fault}\)"), files.new_file(tmp_path / name, overwrite=False):
        pass
    assert os.listdir(tmp_path) == ["file"]
