"""The command line as a user meets it: what it prints, what it exits with, and what it says of bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avpipe.data_manifests import manifest
from avpipe.pipeline.workspace import Workspace

from .conftest import Avpipe, Said

TINY = ("train.epochs=1", "train.tensorboard=false", "fusion.width=16", "decoder.width=16", "generate.max_tokens=4")
QUICK = ("--metrics", "cider,bleu")


@pytest.fixture(scope="module")
def trained(rendered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with features and one run, made by the commands in processes of their own. Not to be written to."""
    own = Workspace(tmp_path_factory.mktemp("trained") / "workspace")
    own.root.mkdir()
    shutil.copytree(rendered.root / "manifests", own.root / "manifests")
    (own.root / "media").symlink_to(rendered.root / "media")
    for words in (
        ["extract", "--recipe", "baseline", "--gpus", "0", "--decoders", "1"],
        ["train", "--name", "tiny", "--json", *TINY],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "avpipe", *words, "--workspace", own.root],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 4  # a log file gets a line a minute, not one a clip
    assert json.loads(done.stdout)["run"] == "tiny"
    return own


@pytest.fixture
def used(trained: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the workspace with features and a run, to break."""
    own = Workspace(tmp_path / "used")
    shutil.copytree(trained.root, own.root, symlinks=True)
    return own


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


# -- the whole chain ---------------------------------------------------------------------------------------------------


def test_scores_of_val_are_written_and_printed(avpipe: Avpipe, used: Workspace) -> None:
    said = avpipe("score", "--split", "val", *QUICK, "-w", used.root)
    assert said.status == 0
    assert "CIDEr" in said.out
    assert "split:val@" in said.out
    assert (used.run("tiny") / "scores" / "val.json").exists()
    assert not (used.run("tiny") / "test_access.log").exists()


def test_every_look_at_the_test_split_is_one_line_of_its_log(avpipe: Avpipe, used: Workspace) -> None:
    log = used.run("tiny") / "test_access.log"
    for looks in (1, 2):
        said = avpipe("score", *QUICK, "--json", "-w", used.root)
        assert said.status == 0
        assert json.loads(said.out)["scored"] == 4
        assert len(log.read_text(encoding="utf-8").splitlines()) == looks


def test_a_run_without_pictures_has_no_clipscore_but_the_reason(avpipe: Avpipe, used: Workspace) -> None:
    said = avpipe("score", "--split", "val", "--metrics", "clipscore", "--json", "-w", used.root)
    assert said.status == 1
    report = json.loads(said.out)
    assert report["scores"] == {"CLIPScore": None, "RefCLIPScore": None}
    assert "avpipe extract -d DATASET -e clip_vit" in report["reasons"]["CLIPScore"]


def test_a_misspelt_metric_is_no_look_at_the_test_split(avpipe: Avpipe, used: Workspace) -> None:
    said = avpipe("score", "--metrics", "cidre", "-w", used.root)
    assert said.status == 2
    assert "unknown metric 'cidre' (did you mean 'cider'?)" in said.err
    assert not (used.run("tiny") / "test_access.log").exists()


def test_a_file_is_captioned(avpipe: Avpipe, trained: Workspace) -> None:
    clip = sorted(trained.media("synthetic").rglob("*.mp4"))[0]
    said = avpipe("caption", clip, "--json", "--beams", 2, "-w", trained.root)
    assert said.status == 0
    found = json.loads(said.out)
    assert len(found["beams"]) == 2
    assert found["text"] == found["beams"][0]["text"]


def test_a_file_without_audio_is_captioned_by_its_pictures(avpipe: Avpipe, trained: Workspace, tmp_path: Path) -> None:
    import av

    silent = tmp_path / "silent.mp4"
    clip = sorted(trained.media("synthetic").rglob("*.mp4"))[0]
    with av.open(str(clip)) as source, av.open(str(silent), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    said = avpipe("caption", silent, "-w", trained.root)
    assert (said.status, said.err) == (0, "")
    assert len(said.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "why"), [("notes.txt", "notes.txt (420 bytes): "), ("gone.mp4", "gone.mp4 does not exist")]
)
def test_a_file_that_is_no_video_is_a_failed_clip(
    avpipe: Avpipe, trained: Workspace, tmp_path: Path, name: str, why: str
) -> None:
    (tmp_path / "notes.txt").write_text("no video, just words\n" * 20, encoding="utf-8")
    said = avpipe("caption", tmp_path / name, "-w", trained.root)
    assert (said.status, said.out) == (3, "")
    assert said.err.startswith("error: ")
    assert why in said.err


def test_everything_is_listed(avpipe: Avpipe, trained: Workspace) -> None:
    listed = json.loads(avpipe("ls", "--json", "-w", trained.root).out)
    assert set(listed["encoders"]) >= {"colour_grid", "log_mel", "clip_vit", "ast"}
    assert listed["prepared"] == {"synthetic": "24 clips (16 train, 4 val, 4 test), 8 a shard"}
    assert set(listed["features"]) == {"synthetic/colour_grid", "synthetic/log_mel"}
    assert listed["runs"]["tiny"].startswith("1 step, best CIDEr")
    for kind, parts in listed.items():
        said = avpipe("ls", kind, "-w", trained.root)
        assert said.out.splitlines()[0].startswith(kind)
        if kind == "datasets":  # their cards: test_preparing.py
            continue
        assert len(said.out.splitlines()) == 1 + len(parts)  # one line each, however long


def test_a_listing_shows_what_is_damaged_and_goes_on(avpipe: Avpipe, used: Workspace) -> None:
    (used.feature_set("synthetic", "log_mel") / "spec.json").write_text("{", encoding="utf-8")
    with (used.run("tiny") / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')  # the run was killed while it wrote
    listed = json.loads(avpipe("ls", "--json", "-w", used.root).out)
    assert listed["features"]["synthetic/log_mel"].startswith("damaged: ")
    assert "24 ok" in listed["features"]["synthetic/colour_grid"]
    assert listed["runs"]["tiny"].startswith("1 step")


def test_verify_finds_a_flipped_byte(avpipe: Avpipe, used: Workspace) -> None:
    said = avpipe("verify", "--deep", "-w", used.root)
    assert said.status == 0
    assert "colour_grid: whole; 24 clips = 24 ok + 0 failed + 0 skipped\n" in said.out
    assert "log_mel: whole; 24 clips = 23 ok + 0 failed + 1 skipped\n" in said.out
    assert said.out.endswith("  1 warning\n    test-00000: all 101 rows are the same\n")  # it is silent
    shard = used.feature_set("synthetic", "log_mel") / "00001.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert avpipe("verify", "--quick", "-w", used.root).status == 0  # reads no shard
    said = avpipe("verify", "--deep", "--json", "-w", used.root)
    assert said.status == 1
    reports = json.loads(said.out)
    assert reports["colour_grid"]["problems"] == []
    assert reports["colour_grid"]["whole"]
    assert "sha256 differs" in reports["log_mel"]["problems"][0]
    assert reports["log_mel"]["missing"] == 8
    said = avpipe("verify", "--deep", "-w", used.root)
    assert said.status == 1
    assert "log_mel: 1 problem; 24 clips = 15 ok + 0 failed + 1 skipped + 8 missing\n" in said.out


def test_a_mended_file_is_extracted_again(avpipe: Avpipe, workspace: Workspace, tmp_path: Path) -> None:
    media = tmp_path / "media"
    shutil.copytree(manifest.read(workspace.manifest("synthetic")).media_root, media)
    broken = sorted(media.rglob("*.mp4"))[0]
    whole = broken.read_bytes()
    broken.write_bytes(b"not a video")
    options = ("--media", media, "--gpus", 0, "--decoders", 1, "-w", workspace.root)
    said = avpipe("extract", "-r", "baseline", "-e", "colour_grid", *options)
    assert said.status == 3
    assert "24 clips = 23 ok + 1 failed + 0 skipped" in said.out
    said = avpipe("retry", "--only", "timeout", *options)
    assert said.status == 2
    assert "unknown kind of failure 'timeout'; known: open" in said.err
    broken.write_bytes(whole)
    said = avpipe("retry", "--json", *options)
    assert said.status == 0
    report = json.loads(said.out)
    assert report["counts"]["colour_grid"] == {"ok": 24, "failed": 0, "skipped": 0}
    assert report["worked"] == 1


def test_a_forecast_writes_nothing(avpipe: Avpipe, workspace: Workspace) -> None:
    before = files(workspace.root)
    options = ("extract", "-r", "baseline", "-e", "colour_grid", "--dry-run", "--gpus", 0, "-w", workspace.root)
    said = avpipe(*options)
    assert said.status == 0
    assert said.out.startswith("24 clips, measured on 24 of them")
    forecast = json.loads(avpipe(*options, "--json").out)
    assert forecast["clips"] == 24
    assert set(forecast["bytes"]) == {"colour_grid"}
    assert files(workspace.root) == before


def test_files_of_any_model_are_scored_with_every_metric(avpipe: Avpipe, tmp_path: Path) -> None:
    predictions, references = tmp_path / "[odd] :smile:.json", tmp_path / "references.json"
    predictions.write_text(json.dumps({"a": "a dog barks", "b": "a man cooks"}), encoding="utf-8")
    references.write_text(json.dumps({"a": ["a dog barks loudly"], "b": ["a man cooks"]}), encoding="utf-8")
    said = avpipe("score", "--predictions", predictions, "--references", references, "--percent")
    assert said.status == 0
    assert said.out.splitlines()[0] == str(predictions)  # neither markup nor emoji is made of a name
    assert {"METEOR", "CIDEr", "ROUGE_L"} <= set(said.out.split())


def test_dense_captions_are_scored(avpipe: Avpipe, tmp_path: Path) -> None:
    event = {"sentence": "a dog runs", "timestamp": [0, 9]}
    (tmp_path / "p.json").write_text(json.dumps({"results": {"v": [event]}}), encoding="utf-8")
    several = [tmp_path / "val_1.json", tmp_path / "val_2.json"]
    for path, sentence in zip(several, ("A dog runs.", "Someone sings."), strict=True):
        path.write_text(json.dumps({"v": {"timestamps": [[0, 10]], "sentences": [sentence]}}), encoding="utf-8")
    options = ("score", "--predictions", tmp_path / "p.json", "--dense", several[0], "--dense", several[1])
    said = avpipe(*options, "--metrics", "rouge_l", "--json")
    assert said.status == 0
    report = json.loads(said.out)
    assert report["by_threshold"]["ROUGE_L"] == pytest.approx([0.5, 0.5, 0.5, 0])
    assert report["scores"]["Recall"] == 0.75
    assert "tIoU 0.9" in avpipe(*options, "--metrics", "rouge_l", "--percent").out


def test_a_run_and_a_file_are_not_scored_at_once(avpipe: Avpipe, tmp_path: Path) -> None:
    said = avpipe("score", "--run", "tiny", "--predictions", tmp_path / "p.json", "--references", tmp_path / "r.json")
    assert said.status == 2
    assert "got both --run tiny and --predictions" in said.err


# -- the frame: help, usage, interruption ------------------------------------------------------------------------------

COMMANDS = (
    "prepare",
    "extract",
    "retry",
    "verify",
    "train",
    "sweep",
    "score",
    "compare",
    "caption",
    "ls",
    "doctor",
    "demo",
)
GROUPED = ("features diff", "features export", "features import", "manifest export")


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['avpipe', '--help']\n"
        "from avpipe import cli\n"
        "try: cli.main()\n"
        "finally: assert not {'torch', 'av', 'h5py'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f" {command} " in done.stdout for command in (*COMMANDS, "features", "manifest"))


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPED])
def test_help_says_what_every_default_is(avpipe: Avpipe, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = avpipe(*command.split(), "--help")
    assert said.status == 0
    assert "[default: ($AVPIPE_HOME, or ./avpipe-data)]" in said.out  # brackets are not taken for markup
    assert "]...]..." not in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "No such command 'nope'"),
        (["extract", "--nope"], "No such option"),
        (["score", "--missing", "foo"], "'foo' is not one of"),
        (["train", "--seed", "x"], "valid integer"),
        (["caption"], "FILE"),
    ],
)
def test_wrong_usage_exits_with_2(avpipe: Avpipe, words: list[str], message: str) -> None:
    said = avpipe(*words)
    assert (said.status, said.out) == (2, "")
    assert message in said.err


def test_an_interrupted_command_says_that_it_can_go_on(
    avpipe: Avpipe, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avpipe import api

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "extraction", interrupted)
    said = avpipe("extract", "-w", workspace.root)
    assert (said.status, said.out) == (130, "")
    assert said.err == "interrupted: the same command goes on from here\n"


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("prepare syntetic", 2, "dataset 'syntetic' (did you mean 'synthetic'?); known: activitynet_captions, "),
        ("prepare synthetic clip.train=4", 2, "clip: unknown key (did you mean 'clips'?)"),
        ("extract -r baselin", 2, "unknown extraction recipe 'baselin' (did you mean 'baseline'?)"),
        ("extract -r gone.yaml", 2, "gone.yaml: 1 fault\n  - cannot be read"),
        (
            "extract -e colr_grid",
            2,
            "unknown encoder 'colr_grid' (did you mean 'colour_grid'?); known: ast, audio_caption,",
        ),
        ("extract -r baseline colour_grid.fraems=3", 2, "fraems: unknown key (did you mean 'frames'?)"),
        ("extract -r baseline colour_grid.frames=none", 2, "frames: input should be a valid integer"),
        ("extract -r baseline colour_grid", 2, "expected key=value"),
        (
            "extract -r baseline log_mell.bands=3",
            2,
            "log_mell: no feature set of this run; known: colour_grid, log_mel",
        ),
        ("extract -r baseline -d sintetic", 2, "unknown dataset 'sintetic' (did you mean 'synthetic'?)"),
        ("extract -r baseline -f hdf", 2, "unknown store format 'hdf' (did you mean 'hdf5'?); known: hdf5, webdataset"),
        ("extract -r baseline --gpus 99", 2, "99 GPUs asked for"),
        ("extract -r baseline --media /nowhere", 1, "the media root /nowhere is no folder here"),
        ("extract -r baseline colour_grid.frames=8", 1, "config.frames: 32 against 8"),
        ("train -f qfromer", 2, "unknown fusion 'qfromer' (did you mean 'qformer'?)"),
        ("train decoder=transfomer", 2, "unknown decoder 'transfomer' (did you mean 'transformer'?)"),
        ("train train.lrr=1", 2, "train.lrr: unknown key (did you mean 'lr'?)"),
        ("train -r nope", 2, "unknown training recipe 'nope'; known: avcap, avcap_small, default,"),
        ("train --features log_mell", 2, "unknown feature set 'log_mell' (did you mean 'log_mel'?)"),
        ("train -m smell", 2, "'video', 'audio' or 'text', got 'smell'"),
        ("train -m text", 2, "is of modality text; there are: colour_grid (video), log_mel (audio)"),
        ("train --name ../escape", 2, "name of a run: expected letters"),
        ("train --name tiny train.lr=1", 2, " against 1.0\n"),
        ("score --run tinny", 2, "unknown run 'tinny' (did you mean 'tiny'?)"),
        ("score -s tset", 2, "unknown split 'tset' (did you mean 'test'?)"),
        ("score --predictions p.json", 2, "--predictions and --references go together"),
        ("score --predictions p.json --references r.json", 1, "p.json"),
        ("score --dense val_1.json", 2, "--dense and --predictions go together"),
        ("score --dense val_1.json --run tiny", 2, "not with --run"),
        ("ls runz", 2, "unknown kind of part 'runz' (did you mean 'runs'?)"),
        ("verify -d zzz", 2, "unknown dataset 'zzz'; known: synthetic"),
        ("retry -e zzz", 2, "unknown feature set 'zzz'; known: colour_grid, log_mel"),
    ],
)
def test_one_clear_message_and_nothing_is_broken(
    avpipe: Avpipe, trained: Workspace, words: str, status: int, message: str
) -> None:
    before = files(trained.root)
    said = avpipe(*words.split(), "-w", trained.root)
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.status == status
    assert files(trained.root) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("extract -r baseline", "no dataset is prepared yet"),
        ("train", "no dataset is prepared yet"),
        ("verify", "no dataset is prepared yet"),
        ("score", "no run yet"),
        ("score --run tiny", "unknown run 'tiny'; known: none. Try: avpipe train"),
        ("caption clip.mp4", "no run yet"),
    ],
)
def test_an_empty_workspace_says_what_to_do_first(avpipe: Avpipe, tmp_path: Path, words: str, message: str) -> None:
    said = avpipe(*words.split(), "-w", tmp_path / "new")
    assert said.status == 2
    assert message in said.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [["train"], ["verify"], ["retry", "-d", "synthetic"]])
def test_nothing_extracted_yet(avpipe: Avpipe, workspace: Workspace, words: list[str]) -> None:
    said = avpipe(*words, "-w", workspace.root)
    assert said.status == 2
    assert "try: avpipe extract --dataset synthetic" in said.err


@pytest.mark.parametrize("words", ["extract", "train", "score", "ls", "verify", "prepare synthetic", "caption x.mp4"])
def test_a_file_in_place_of_the_workspace(avpipe: Avpipe, tmp_path: Path, words: str) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    said = avpipe(*words.split(), "-w", tmp_path / "file")
    assert said.status == 2
    assert f"expected a folder at {tmp_path / 'file'}, got a file" in said.err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


def test_a_half_extracted_dataset_is_not_trained_on(avpipe: Avpipe, used: Workspace) -> None:
    for path in used.feature_set("synthetic", "log_mel").glob("00001.*"):
        path.unlink()
    said = avpipe("train", *TINY, "-w", used.root)
    assert said.status == 1
    assert "feature set 'log_mel' of 'synthetic' says nothing about 8 of 20 clips" in said.err
    assert "Run avpipe extract" in said.err
    assert used.runs() == ["tiny"]


def test_a_run_refuses_features_of_another_setting(avpipe: Avpipe, used: Workspace) -> None:
    shutil.rmtree(used.feature_set("synthetic", "colour_grid"))
    options = ("-e", "colour_grid", "colour_grid.frames=8", "--gpus", 0, "--decoders", 1, "-w", used.root)
    assert avpipe("extract", "-r", "baseline", *options).status == 0
    said = avpipe("score", "--run", "tiny", *QUICK, "-w", used.root)
    assert said.status == 1
    assert "colour_grid.config.frames: 32 against 8" in said.err
    assert not (used.run("tiny") / "test_access.log").exists()
    said = avpipe("train", "--name", "tiny", *TINY, "-w", used.root)
    assert said.status == 1
    assert "colour_grid.config.frames: 32 against 8" in said.err


def test_a_damaged_checkpoint_is_named(avpipe: Avpipe, used: Workspace) -> None:
    weights = used.run("tiny") / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said = avpipe("score", *QUICK, "-w", used.root)
    assert said.status == 1
    assert "is damaged: model.safetensors is not what was written" in said.err


def test_missing_weights_say_how_to_get_them(avpipe: Avpipe, workspace: Workspace, tmp_path: Path) -> None:
    said = avpipe("extract", "-e", "clip_vit", f"clip_vit.weights={tmp_path}/gone.pt", "-w", workspace.root)
    assert said.status == 1
    assert "hf download" in said.err
    assert "clip_vit.weights=random" in said.err


def test_random_weights_are_shouted_about(
    avpipe: Avpipe, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    said = avpipe("extract", "-e", "clip_vit", "clip_vit.weights=random", "--media", "/nowhere", "-w", workspace.root)
    assert said.status == 1
    assert "RANDOM WEIGHTS" in caplog.text


# -- a folder of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path: Path, rendered: Workspace) -> Path:
    """Two videos of a user's own."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, clip in zip("ab", sorted(rendered.media("synthetic").rglob("*.mp4")), strict=False):
        shutil.copy(clip, folder / f"{name}.mp4")
    return folder


def prepare(avpipe: Avpipe, videos: Path, captions: object, *words: str) -> Said:
    text = captions if isinstance(captions, str) else json.dumps(captions)
    (videos.parent / "captions.json").write_text(text, encoding="utf-8")
    annotations = videos.parent / "captions.json"
    own = videos.parent / "own"
    return avpipe("prepare", "folder", *words, "--media", videos, "--annotations", annotations, "-w", own)


def test_odd_captions_become_sensible_ones(avpipe: Avpipe, videos: Path) -> None:
    odd = {"a": ["a dog\nbarks\tloudly", 'she says "hi" \U0001f600'], "b": ["[bold] :smile:"]}
    said = prepare(avpipe, videos, odd)
    assert said.status == 0
    assert said.out.startswith("folder: ")
    clips = manifest.read(Workspace(videos.parent / "own").manifest("folder")).clips
    captions = {clip.clip_id: clip.captions for clip in clips}
    assert captions == {"a": ("a dog barks loudly", 'she says "hi" \U0001f600'), "b": ("[bold] :smile:",)}


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"a": ["x"], "gone": ["y"]}, "1 ids without a file"),
        ({"a": ["x"], "b": ["  "]}, "empty captions"),
        ({"a": ["x"], "b": []}, "ids without captions"),
        ('{"a": ["x"], "a": ["y"]}', "keys that occur twice"),
        ({"images": [{"id": "a"}], "annotations": [{"image_id": "zz", "caption": "x"}]}, "captions for unknown ids"),
        ('{"a": ', "captions.json"),
        ({}, "captions.json"),
    ],
)
def test_bad_captions_are_listed_and_the_old_manifest_stands(
    avpipe: Avpipe, videos: Path, captions: object, message: str
) -> None:
    assert prepare(avpipe, videos, {"a": ["x"], "b": ["y"]}).status == 0
    before = {path: path.read_bytes() for path in files(videos.parent / "own")}
    said = prepare(avpipe, videos, captions)
    assert said.status == 1
    assert said.err.startswith("error: ")
    assert message.split(maxsplit=1)[-1] in said.err
    assert {path: path.read_bytes() for path in files(videos.parent / "own")} == before


def test_a_media_folder_that_is_not_there(avpipe: Avpipe, videos: Path) -> None:
    (videos.parent / "captions.json").write_text('{"a": ["x"]}', encoding="utf-8")
    said = avpipe("prepare", "folder", "--media", videos / "gone", "--annotations", videos.parent / "captions.json")
    assert said.status == 1
    assert "expected a folder of videos" in said.err
    assert "which does not exist" in said.err


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_the_doctor_looks_at_everything(avpipe: Avpipe, tmp_path: Path) -> None:
    findings = json.loads(avpipe("doctor", "--json", "-w", tmp_path).out)
    checks = [finding["check"] for finding in findings]
    assert {"machine", "packages", "decoder", "java", "workspace"} <= set(checks)
    assert all(finding["status"] in ("ok", "note", "fault") for finding in findings)
    assert all(finding["advice"] for finding in findings if finding["status"] != "ok")


def test_the_doctor_finds_faults(avpipe: Avpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def version(name: str) -> str:
        if name == "webdataset":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("avpipe.doctor.importlib.metadata.version", version)
    (tmp_path / "file").write_text("", encoding="utf-8")
    said = avpipe("doctor", "-w", tmp_path / "file")
    assert said.status == 1
    assert "lacks webdataset" in said.out
    assert f"expected a folder at {tmp_path / 'file'}, got a file" in said.out


def test_the_doctor_tells_whether_spice_can_run(
    avpipe: Avpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avpipe.eval.corenlp import JARS, SIZES

    def finding() -> dict[str, str]:
        findings = json.loads(avpipe("doctor", "--json", "-w", tmp_path).out)
        return next(found for found in findings if found["check"] == "spice")

    monkeypatch.setenv("AVPIPE_SPICE", str(tmp_path))
    assert finding()["status"] == "note"
    assert "avpipe doctor --install spice" in finding()["detail"]
    for name in JARS:
        (tmp_path / name).touch()
    assert finding()["status"] == "fault"
    assert "got another size of" in finding()["detail"]
    for name, size in SIZES.items():
        os.truncate(tmp_path / name, size)  # sparse
    assert (finding()["status"], finding()["detail"]) == ("ok", f"CoreNLP 3.6.0 in {tmp_path}")


def test_the_doctor_works_where_there_is_no_home(
    avpipe: Avpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home(path: object) -> Path:
        if isinstance(path, Path) and not str(path).startswith("~"):
            return path
        raise RuntimeError("Could not determine home directory.")

    for name in ("AVPIPE_CACHE", "AVPIPE_SPICE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    findings = {found["check"]: found for found in json.loads(avpipe("doctor", "--json").out)}
    assert "Set AVPIPE_CACHE to a folder" in findings["spice"]["detail"]
    assert "Could not determine home directory" in findings["model weights"]["detail"]
    assert findings["java"]["status"] == "ok"


def test_what_is_installed_for_spice_must_be_where_it_looks(
    avpipe: Avpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVPIPE_SPICE", str(tmp_path / "elsewhere"))
    said = avpipe("doctor", "--install", "spice", "--from", tmp_path)
    assert said.status == 2
    assert "AVPIPE_SPICE names" in said.err
    assert "Unset it" in said.err


def test_the_doctor_installs_what_spice_needs(avpipe: Avpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from avpipe.eval import corenlp

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "small.jar").write_bytes(b"small")
    monkeypatch.setenv("AVPIPE_CACHE", str(tmp_path / "cache"))
    pinned = {"small.jar": hashlib.sha256(b"small").hexdigest()}
    monkeypatch.setattr(corenlp.install, "__kwdefaults__", {**corenlp.install.__kwdefaults__, "jars": pinned})
    said = avpipe("doctor", "--install", "spice", "--from", tmp_path / "source")
    assert said.status == 0
    assert "small.jar from " in said.out
    assert (tmp_path / "cache" / "spice" / "small.jar").read_bytes() == b"small"
    again = avpipe("doctor", "--install", "spice", "--from", tmp_path / "source", "--json")
    assert json.loads(again.out) == {"spice": str(tmp_path / "cache" / "spice")}


def test_the_doctor_refuses_a_source_for_nothing(avpipe: Avpipe, tmp_path: Path) -> None:
    said = avpipe("doctor", "--from", tmp_path)
    assert said.status == 2
    assert f"--from {tmp_path} goes with --install" in said.err
