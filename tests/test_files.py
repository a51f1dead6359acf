"""Files written whole: readers meet the old or the new one, and a failure leaves the old one."""

import errno
import json
import os
import threading

import pytest

from mpirl import files
from mpirl.files import write_atomically, write_json


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_and_nothing_is_left_beside(tmp_path, durable):
    for content in (b"old", memoryview(b"new")):
        write_atomically(tmp_path / "file", content, durable)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_a_durable_file_is_synced_before_the_rename_and_its_folder_after(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, original=original: (events.append(name), original(*args)))
    write_atomically(tmp_path / "file", b"", durable=False)
    assert events == ["replace"]
    write_atomically(tmp_path / "file", b"")
    assert events[1:] == ["fsync", "replace", "fsync"]


def test_readers_never_meet_a_part(tmp_path):
    path, done = tmp_path / "file.json", threading.Event()
    write_json(path, {"number": 0, "rest": "x" * 200_000})

    def write():
        for number in range(200):
            write_json(path, {"number": number, "rest": "x" * 200_000})
        done.set()

    writer, numbers = threading.Thread(target=write), []
    writer.start()
    while not done.is_set():
        numbers.append(json.loads(path.read_text())["number"])
    writer.join()
    assert numbers == sorted(numbers) and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, failing):
    write_atomically(tmp_path / "file", b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
