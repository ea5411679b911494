"""The ledger: every clip of the official files is counted once, and the sums must add up."""

from __future__ import annotations

import csv
import hashlib
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.data_manifests.ledger import LeftOut, Reason, SplitLedger, as_csv, ledger, rows, shown
from avpipe.pipeline.clip import Clip


def clip(clip_id: str, split: str = "train", **media: Any) -> Clip:
    """A clip with what is known of its file; nothing where nobody looked."""
    extra = {"media": media} if media else {}
    return Clip(clip_id=clip_id, dataset="toys", path=f"{clip_id}.mp4", split=split, captions=("x",), extra=extra)


def gone(clip_id: str, reason: Reason, split: str = "train", detail: str = "") -> LeftOut:
    return LeftOut(clip_id=clip_id, split=split, reason=reason, detail=detail)


CLIPS = [
    clip("a", has_audio=True, is_silent=False),
    clip("b", has_audio=True, is_silent=True),
    clip("c", has_audio=False),
    clip("d", unreadable="open: Invalid data found"),
    clip("e", missing=True),
    clip("t", "test", has_audio=True, is_silent=False),
]
LEFT_OUT = [
    gone("f", "missing"),
    gone("g", "unreadable", detail="empty: no packets"),
    gone("h", "faulty", detail="no caption"),
    gone("i", "not_listed"),
    gone("j", "not_listed"),
    gone("u", "faulty", "test", detail='no length: "3, 3"'),
]


def sha256(*ids: str) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def test_every_clip_is_counted_in_its_split() -> None:
    table = ledger(CLIPS, LEFT_OUT, {"train": 12, "val": 4}, probed=True)
    assert table["train"].to_json() == {
        "official": 12, "annotated": 10, "not_listed": 2, "faulty": 1, "missing": 2, "on_disk": 5, "unreadable": 2,
        "with_audio": 2, "silent": 1, "clips": 5, "ids_sha256": sha256("a", "b", "c", "d", "e"),
    }  # fmt: skip
    assert table["test"].to_json() == {
        "official": None, "annotated": 2, "not_listed": 0, "faulty": 1, "missing": 0, "on_disk": 1, "unreadable": 0,
        "with_audio": 1, "silent": 0, "clips": 1, "ids_sha256": sha256("t"),
    }  # fmt: skip


def test_a_split_of_the_release_without_any_clip_is_there() -> None:
    table = ledger([clip("a")], [], {"train": 1, "val": 4}, probed=False)
    assert list(table) == ["train", "val"]
    assert (table["val"].official, table["val"].annotated, table["val"].clips) == (4, 0, 0)


def test_a_split_that_is_nowhere_is_not_there() -> None:
    assert list(ledger([clip("a")], [], {}, probed=False)) == ["train"]
    assert list(ledger([], [gone("a", "missing", "val")], {}, probed=False)) == ["val"]
    assert ledger([], [], {}, probed=True) == {}


def test_what_nobody_looked_into_is_not_known() -> None:
    (row,) = ledger([clip("a"), clip("b")], [], {}, probed=False).values()
    assert (row.on_disk, row.unreadable, row.with_audio, row.silent) == (2, None, None, None)
    (row,) = ledger([clip("a"), clip("b")], [], {}, probed=True).values()
    assert (row.on_disk, row.unreadable, row.with_audio, row.silent) == (2, 0, 0, 0)


def test_sound_nobody_could_listen_to_is_not_silent() -> None:
    # A stream of which nothing decodes: there is a stream, and is_silent is not known.
    (row,) = ledger([clip("a", has_audio=True)], [], {}, probed=True).values()
    assert (row.with_audio, row.silent) == (1, 0)


@given(order=st.permutations(CLIPS))
def test_the_hash_knows_the_clips_and_not_their_order(order: list[Clip]) -> None:
    assert ledger(order, [], {}, probed=True) == ledger(CLIPS, [], {}, probed=True)


def test_the_hash_tells_other_clips() -> None:
    hashes = {
        ledger([clip(each) for each in ids], [], {}, probed=False)["train"].ids_sha256
        for ids in (["a", "b"], ["a"], ["ab"], ["a", "B"], ["a", "b", "c"])
    }
    assert len(hashes) == 5


@given(
    here=st.lists(st.sampled_from(["missing", "unreadable", "silent", "audible", "mute", "unknown"])),
    left=st.lists(st.sampled_from(["not_listed", "faulty", "missing", "unreadable"])),
)
def test_the_sums_add_up_whatever_there_is(here: list[str], left: list[Reason]) -> None:
    known = {
        "missing": {"missing": True}, "unreadable": {"unreadable": "open: x"}, "unknown": {},
        "silent": {"has_audio": True, "is_silent": True}, "audible": {"has_audio": True, "is_silent": False},
        "mute": {"has_audio": False},
    }  # fmt: skip
    clips = [clip(f"here{number}", **known[what]) for number, what in enumerate(here)]
    table = ledger(clips, [gone(f"left{n}", reason) for n, reason in enumerate(left)], {}, probed=True)
    assert sum(row.annotated for row in table.values()) == len(here) + len(left)
    for row in table.values():
        assert row.annotated == row.not_listed + row.faulty + (row.missing or 0) + (row.on_disk or 0)
        assert row.clips == len(here)


COUNTS = {
    "official": 9, "annotated": 8, "not_listed": 1, "faulty": 1, "missing": 2, "on_disk": 4, "unreadable": 1,
    "with_audio": 3, "silent": 3, "clips": 4, "ids_sha256": sha256("a"),
}  # fmt: skip


def test_counts_that_add_up_are_taken_as_they_are() -> None:
    assert SplitLedger(**COUNTS).to_json() == COUNTS
    # Where nobody looked for files, the others are those in the manifest.
    SplitLedger(**{**COUNTS, "missing": None, "on_disk": None, "clips": 6})
    SplitLedger(**{**COUNTS, "unreadable": None, "with_audio": None, "silent": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotated": 9}, "expected not_listed . faulty . missing . on_disk = 9, got 8"),
        ({"missing": 0}, "= 8, got 6"),
        ({"not_listed": 2}, "= 8, got 9"),
        ({"missing": None, "on_disk": None}, "= 8, got 6"),
        ({"silent": 4}, "expected silent <= with_audio <= on_disk - unreadable, got .*'silent': 4"),
        ({"with_audio": 4}, "with_audio <= on_disk - unreadable, got .*'with_audio': 4"),
        ({"unreadable": 2}, "with_audio <= on_disk - unreadable, got .*'unreadable': 2"),
    ],
)
def test_counts_that_do_not_add_up_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitLedger(**{**COUNTS, **change})


def test_a_clip_that_was_lost_on_the_way_is_noticed() -> None:
    """The sums are held against what was counted before anything was sorted out."""
    clips, left = [clip("a"), clip("b")], [gone("c", "faulty")]
    assert ledger(clips, left, {}, probed=False, annotated={"train": 3})["train"].annotated == 3
    with pytest.raises(ValueError, match="on_disk = 4, got 3"):
        ledger(clips, left, {}, probed=False, annotated={"train": 4})


def test_what_is_wrong_is_told_clip_by_clip() -> None:
    assert rows(CLIPS, LEFT_OUT) == [
        ("f", "train", "missing", "no", ""),
        ("g", "train", "unreadable", "no", "empty: no packets"),
        ("h", "train", "faulty", "no", "no caption"),
        ("u", "test", "faulty", "no", 'no length: "3, 3"'),
        ("d", "train", "unreadable", "yes", "open: Invalid data found"),
        ("e", "train", "missing", "yes", ""),
    ]


def test_where_nothing_is_wrong_there_is_nothing_to_tell() -> None:
    assert rows([clip("a"), clip("b", has_audio=False)], [gone("c", "not_listed")]) == []
    assert as_csv([]) == "clip_id,split,reason,in_manifest,detail\n"


def test_the_list_is_csv_that_reads_back() -> None:
    found = rows(CLIPS, [*LEFT_OUT, gone("v", "unreadable", detail='two\nlines, a ";" and ü')])
    text = as_csv(found)
    assert 'u,test,faulty,no,"no length: ""3, 3"""\n' in text
    heading, *body = csv.reader(io.StringIO(text, newline=""))
    assert heading == ["clip_id", "split", "reason", "in_manifest", "detail"]
    assert [tuple(line) for line in body] == found


def shown_of(clips: list[Clip], left_out: list[LeftOut], official: dict[str, int], *, probed: bool) -> list[list[str]]:
    table = ledger(clips, left_out, official, probed=probed)
    return shown({split: row.to_json() for split, row in table.items()})


def test_the_table_for_a_person() -> None:
    heading, train, test = shown_of(CLIPS, LEFT_OUT, {"train": 12_345}, probed=True)
    assert heading == ["", "official", "annotated", "not listed", "faulty", "missing", "on disk", "unreadable",
                       "with audio", "silent", "in manifest", "ids"]  # fmt: skip
    assert train == ["train", "12,345", "10", "2", "1", "2", "5", "2", "2", "1", "5", sha256(*"abcde")[:12]]
    assert test == ["test", "-", "2", "0", "1", "0", "1", "0", "1", "0", "1", sha256("t")[:12]]


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    heading, row = shown_of([clip("a")], [], {}, probed=False)
    assert heading == ["", "annotated", "on disk", "in manifest", "ids"]
    assert row == ["train", "1", "1", "1", sha256("a")[:12]]


def test_what_was_looked_for_and_not_found_is_shown() -> None:
    heading, row = shown_of([clip("a", has_audio=False)], [], {}, probed=True)
    assert heading == ["", "annotated", "missing", "on disk", "unreadable", "with audio", "silent", "in manifest",
                       "ids"]  # fmt: skip
    assert row[:-1] == ["train", "1", "0", "1", "0", "0", "0", "1"]


def test_a_table_of_nothing_has_a_heading() -> None:
    assert shown({}) == [["", "annotated", "on disk", "in manifest", "ids"]]
