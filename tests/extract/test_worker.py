"""The machine room: side by side, across shards, in any order of events, and yet always the same bytes."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avpipe.data_manifests import manifest
from avpipe.extract import worker
from avpipe.extract.decoding import Decoded
from avpipe.extract.encoder import Encoder
from avpipe.extract.run import Part, extract, plan_tasks
from avpipe.extract.worker import Setting, ShardTask, ShardWorker, waiting_for
from avpipe.pipeline import shards
from avpipe.pipeline.errors import AvpipeError, StoreError, UsageError
from avpipe.pipeline.runner import Event, Progress
from avpipe.pipeline.store import FeatureSet
from avpipe.pipeline.workspace import Workspace

from .toy_encoders import Brightness, Describer, Speller


class Parent:
    """Hands out tasks in this very process, and notes what is told."""

    def __init__(self, tasks: list[ShardTask]) -> None:
        self.tasks = tasks
        self.taken: list[str] = []
        self.told: list[tuple[str, str, Mapping[str, Any]]] = []

    def __iter__(self) -> Iterator[ShardTask]:
        for task in self.tasks:
            self.taken.append(task.name)
            yield task

    def progress(self, task: str, data: Mapping[str, Any]) -> None:
        self.told.append(("progress", task, data))

    def done(self, task: str, counts: Mapping[str, int]) -> None:
        self.told.append(("done", task, counts))

    @property
    def done_tasks(self) -> list[str]:
        return [task for what, task, _ in self.told if what == "done"]


def setting(workspace: Workspace, folder: Path, *encoders: Encoder, **changed: Any) -> Setting:
    media_root = manifest.read(workspace.manifest("synthetic")).media_root
    folders = {encoder.spec.name: folder / encoder.spec.name for encoder in encoders}
    values: dict[str, Any] = {"media_root": media_root, "decoders": 2, "texts": folders, **changed}
    return Setting(encoders={encoder.spec.name: encoder for encoder in encoders}, folders=folders, **values)


def work(workspace: Workspace, made: Setting) -> Parent:
    """Do everything with one worker, in this process."""
    parent = Parent(plan_tasks(manifest.read(workspace.manifest("synthetic")), made))
    do = ShardWorker(made, 0)
    try:
        do(iter(parent), parent)
    finally:
        do.close()
    return parent


def digests(folder: Path) -> dict[str, str]:
    """Of every shard."""
    found = [path for path in sorted(folder.rglob("0*")) if path.suffix != ".json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def all_four() -> list[Encoder]:
    words = Describer()
    return [Brightness(), words, Speller(words.spec), Brightness("again")]


def test_everything_is_told_and_every_clip_has_its_row(workspace: Workspace, tmp_path: Path) -> None:
    parent = work(workspace, setting(workspace, tmp_path, *all_four()))
    clips = manifest.read(workspace.manifest("synthetic")).clips
    assert parent.done_tasks == parent.taken == ["00000", "00001", "00002"]
    assert sum(data["clips"] for what, _, data in parent.told if what == "progress") == len(clips)
    counts = [data for what, _, data in parent.told if what == "done"]
    assert sum(count for data in counts for count in data.values()) == 4 * len(clips)
    for name in ("brightness", "words", "letters", "again"):
        assert len(list(FeatureSet(tmp_path / name).outcomes())) == len(clips)


def test_a_mark_says_what_the_network_ran_in(workspace: Workspace, tmp_path: Path) -> None:
    network = Brightness("network")
    network.spec = replace(network.spec, config={"precision": "bf16"})
    work(workspace, setting(workspace, tmp_path, network, Brightness()))
    assert {mark.arithmetic for mark in shards.marks(tmp_path / "network")} == {"float32"}  # the CPU's
    assert {mark.arithmetic for mark in shards.marks(tmp_path / "brightness")} == {""}


def test_rows_are_cut_in_batches_within_a_shard(workspace: Workspace, tmp_path: Path) -> None:
    work(workspace, setting(workspace, tmp_path, Brightness()))
    features = FeatureSet(tmp_path / "brightness")
    sizes = [int(features.read(clip_id).data[0, 1]) for clip_id in features.clip_ids]
    assert sizes == [3, 3, 3, 3, 3, 3, 2, 2] * 3  # shards of eight


def test_the_next_shard_is_begun_before_the_last_is_done(workspace: Workspace, tmp_path: Path) -> None:
    made = setting(workspace, tmp_path, Brightness(seconds=0.2))
    parent = Parent(plan_tasks(manifest.read(workspace.manifest("synthetic")), made))
    taken_when_done: list[int] = []
    tell = parent.done

    def done(task: str, counts: Mapping[str, int]) -> None:
        taken_when_done.append(len(parent.taken))
        tell(task, counts)

    parent.done = done  # type: ignore[method-assign]
    do = ShardWorker(made, 0)
    try:
        do(iter(parent), parent)
    finally:
        do.close()
    assert taken_when_done[0] > 1


def test_turns_give_the_same_bytes_with_one_encoder_at_a_time(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(workspace, setting(workspace, tmp_path / "together", *all_four()))
    for turn in (1, 4, 100):
        monkeypatch.setattr(worker, "TURN_CLIPS", turn)
        encoders = all_four()
        work(workspace, setting(workspace, tmp_path / str(turn), *encoders, residency="turns"))
        assert digests(tmp_path / str(turn)) == digests(tmp_path / "together")
        for encoder in encoders:
            assert isinstance(encoder, Brightness | Describer | Speller)
            assert encoder.loads == ["cpu", "cpu"] * (len(encoder.loads) // 2)  # there and back
            assert encoder.loads


def test_text_is_read_when_it_is_safe(workspace: Workspace, tmp_path: Path) -> None:
    words = Describer()
    work(workspace, setting(workspace, tmp_path, words, Speller(words.spec)))
    texts, letters = FeatureSet(tmp_path / "words"), FeatureSet(tmp_path / "letters")
    assert texts.clip_ids == letters.clip_ids
    for clip_id in texts.clip_ids:
        spelled = bytes(letters.read(clip_id).data[:, 0].astype(np.uint8)).decode()
        assert spelled == texts.segments(clip_id).text
        assert spelled.startswith("a sound of 0.")
    silent = [outcome for outcome in letters.outcomes() if outcome.status == "skipped"]
    assert [outcome.clip_id for outcome in silent] == [o.clip_id for o in texts.outcomes() if o.status == "skipped"]
    assert silent
    assert {outcome.error_type for outcome in silent} == {"no_audio"}
    assert silent[0].error_message == "words has no text of it: the clip has no sound"


def test_text_that_is_there_is_read_without_decoding(workspace: Workspace, tmp_path: Path) -> None:
    words = Describer()
    work(workspace, setting(workspace, tmp_path, words))
    (tmp_path / "no media").mkdir()
    alone = setting(workspace, tmp_path, Speller(words.spec), media_root=tmp_path / "no media")
    alone = replace(alone, texts={"words": tmp_path / "words"})
    parent = work(workspace, alone)
    assert parent.done_tasks == ["00000", "00001", "00002"]
    assert sum(data["clips"] for what, _, data in parent.told if what == "progress") == 24
    assert FeatureSet(tmp_path / "letters").counts["failed"] == 0


def test_text_that_is_not_there_stops_the_run(workspace: Workspace, tmp_path: Path) -> None:
    words = Describer()
    alone = setting(workspace, tmp_path, Speller(words.spec))
    alone = replace(alone, texts={"words": tmp_path / "words"})
    with pytest.raises(StoreError, match="lacks shard 00000: extract 'words' first"):
        work(workspace, alone)
    assert digests(tmp_path) == {}


def test_text_that_is_written_anew_is_read_anew(workspace: Workspace, tmp_path: Path) -> None:
    words = Describer()
    made = setting(workspace, tmp_path, words, Speller(words.spec))
    work(workspace, made)
    (tmp_path / "words" / "00001.json").unlink()
    (task,) = plan_tasks(manifest.read(workspace.manifest("synthetic")), made)
    assert (task.name, task.feature_sets) == ("00001", ("words", "letters"))


def test_a_bug_in_an_encoder_is_raised_and_leaves_nothing_half_done(workspace: Workspace, tmp_path: Path) -> None:
    made = setting(workspace, tmp_path, Brightness(fault="no such layer"), Brightness("whole"))
    with pytest.raises(RuntimeError, match="no such layer"):
        work(workspace, made)
    assert digests(tmp_path) == {}
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_full_disk_is_raised_and_the_next_run_goes_on(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setting(workspace, tmp_path, Brightness())
    commit = worker.ShardWriter.commit

    def full(writer: worker.ShardWriter) -> None:
        if writer.plan.index == 1:
            raise StoreError("the disk is full")
        commit(writer)

    with monkeypatch.context() as patch:
        patch.setattr(worker.ShardWriter, "commit", full)
        with pytest.raises(StoreError, match="the disk is full"):
            work(workspace, made)
    assert list(digests(tmp_path)) == ["brightness/00000.h5"]
    work(workspace, setting(workspace, tmp_path, Brightness()))
    assert shards.verify(tmp_path / "brightness") == []
    assert len(FeatureSet(tmp_path / "brightness")) == 24


def test_too_little_memory_on_the_device_says_what_to_try(workspace: Workspace, tmp_path: Path) -> None:
    made = setting(workspace, tmp_path, Brightness(fault="CUDA out of memory. Tried to allocate 9 GiB"))
    with pytest.raises(
        AvpipeError, match=r"brightness: cpu has too little memory \(CUDA out of memory\).*batch_size=1,"
    ):
        work(workspace, made)


def test_parts_share_the_shards_between_them(workspace: Workspace, tmp_path: Path) -> None:
    read = manifest.read(workspace.manifest("synthetic"))
    made = setting(workspace, tmp_path, Brightness())
    names = [[task.name for task in plan_tasks(read, made, part=Part(index, 2))] for index in (1, 2)]
    assert names == [["00000", "00002"], ["00001"]]
    report = extract(read, made, part=Part(2, 2))
    assert report.counts == {"brightness": {"ok": 8, "failed": 0, "skipped": 0}}
    assert list(digests(tmp_path)) == ["brightness/00001.h5"]
    assert [task.name for task in plan_tasks(read, made, part=Part(2, 2))] == []
    assert [task.name for task in plan_tasks(read, made, part=Part(1, 2))] == ["00000", "00002"]  # whatever is done


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "-1/2", "1/0", "/"])
def test_nonsense_parts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="part: expected i/n"):
        Part.parse(text)
    assert Part.parse("3/16") == Part(3, 16)


def test_progress_says_what_is_waited_for(workspace: Workspace, tmp_path: Path) -> None:
    events: list[Event] = []
    made = setting(workspace, tmp_path, Brightness(seconds=0.3))
    extract(manifest.read(workspace.manifest("synthetic")), made, on_event=events.append)
    waits = [event.data["waits"] for event in events if isinstance(event, Progress)]
    assert waits[-1]["encoding"] > waits[0]["encoding"]
    assert waiting_for([waits[-1]]) == "encoding"


def test_the_last_in_the_chain_is_to_blame() -> None:
    assert waiting_for([]) == ""
    assert waiting_for([{"decoding": 0.1, "encoding": 0.2, "writing": 0.0}]) == ""  # nobody waits to speak of
    assert waiting_for([{"decoding": 5.0, "encoding": 1.0, "writing": 0.0}]) == "decoding"
    assert waiting_for([{"decoding": 1.0, "encoding": 9.0, "writing": 0.5}]) == "encoding"
    assert waiting_for([{"decoding": 1.0, "encoding": 9.0, "writing": 7.0}]) == "writing"


def test_an_error_is_raised_though_the_parent_gives_nothing_before_all_is_done(
    workspace: Workspace, tmp_path: Path
) -> None:
    """As the runner does with the tasks of a process that died: one at a time."""
    made = setting(workspace, tmp_path, Brightness(fault="no such layer"))
    is_over = threading.Event()

    class Wary(Parent):
        def __iter__(self) -> Iterator[ShardTask]:
            yield self.tasks[0]
            is_over.wait()  # that task is never done

    parent = Wary(plan_tasks(manifest.read(workspace.manifest("synthetic")), made))
    do = ShardWorker(made, 0)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            do(iter(parent), parent)
        except RuntimeError as error:
            raised.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    running.join(30)
    hangs = running.is_alive()
    is_over.set()
    running.join()
    do.close()
    assert not hangs
    assert [str(error) for error in raised] == ["no such layer"]


def test_text_that_is_there_in_part_is_told_before_anything_runs(workspace: Workspace, tmp_path: Path) -> None:
    words = Describer()
    work(workspace, setting(workspace, tmp_path, words))
    (tmp_path / "words" / "00002.json").unlink()
    alone = replace(setting(workspace, tmp_path, Speller(words.spec)), texts={"words": tmp_path / "words"})
    read = manifest.read(workspace.manifest("synthetic"))
    with pytest.raises(StoreError, match="lacks shard 00002: extract 'words' first"):
        plan_tasks(read, alone)
    assert [task.name for task in plan_tasks(read, alone, part=Part(2, 3))] == ["00001"]  # what others lack


def test_arrays_of_other_encoders_do_not_wait_for_a_batch_to_be_whole() -> None:
    """An encoder of large batches shall not keep the frames of all its clips."""
    output = object.__new__(worker._Output)
    output.name, output.encoder, output._gathered, output._failures = "small", Brightness("small"), [], []
    large = np.ones(1000)
    is_kept = weakref.ref(large)
    prepared = {"small": {"data": np.ones(1)}, "large": {"data": large}}
    output.take("a", Decoded(prepared=prepared, notes=("cut",), seconds=2.0))
    (batch,) = output.batches(to_the_end=True)
    del large, prepared
    assert is_kept() is None
    assert [(fact.notes, fact.seconds) for _, _, fact in batch.clips] == [(("cut",), 2.0)]
