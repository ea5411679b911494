"""The ``qformer`` fusion's streams and the public weights that it starts from, tensor by tensor.

The files are made here, in the layouts of LAVIS, of the Hub and of BERT, with numbers of their own in every tensor.
What is to come from where is said in the authors' way: they load by name what they renamed, and what has no name there
stays new. With ../shared the same is compared with the whole listing, for each of their variants.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from avpipe.pipeline.errors import CheckpointError, ConfigError, MissingWeightsError, UsageError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train import checkpoint
from avpipe.train.config import check
from avpipe.train.fusions import _blip2
from avpipe.train.fusions.qformer import PAPER, Config, Fusion
from avpipe.train.loop import train
from tests.train import loop_toys, test_fusions
from tests.train.toys import alive, batch

LAYERS, WIDTH, WIDE, VIDEO, AUDIO, OUT = 12, 16, 24, 14, 10, 20
SMALL = {"width": WIDTH, "heads": 2, "feed_forward": WIDE}
SPECS = {
    "hear": FeatureSpec(name="hear", encoder="toy", modality="audio", dim=AUDIO),
    "see": FeatureSpec(name="see", encoder="toy", modality="video", dim=VIDEO),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "aligned_f2": {},
    "aligned_f1": {"cross_attention_every": 1},
    "alternating": {"streams": "alternating"},
    "increased": {"queries": {"video": 32, "audio": 32}},
    "separate": {"streams": "separate"},
}

Tensors = dict[str, Tensor]


# -- files -------------------------------------------------------------------------------------------------------------


def tagged(name: str, *shape: int) -> Tensor:
    """Numbers that no other tensor has."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def linear(name: str, out: int, width: int) -> Tensors:
    return {f"{name}.weight": tagged(f"{name}.weight", out, width), f"{name}.bias": tagged(f"{name}.bias", out)}


def norm(name: str, width: int) -> Tensors:
    return {key: tagged(key, width) for key in (f"{name}.weight", f"{name}.bias")}


def attention(name: str, keys: int) -> Tensors:
    found = linear(f"{name}.self.query", WIDTH, WIDTH)
    for part in ("key", "value"):
        found |= linear(f"{name}.self.{part}", WIDTH, keys)
    return found | linear(f"{name}.output.dense", WIDTH, WIDTH) | norm(f"{name}.output.LayerNorm", WIDTH)


def feed_forward(layer: str, kind: str) -> Tensors:
    return {
        **linear(f"{layer}.intermediate{kind}.dense", WIDE, WIDTH),
        **linear(f"{layer}.output{kind}.dense", WIDTH, WIDE),
        **norm(f"{layer}.output{kind}.LayerNorm", WIDTH),
    }


def lavis(layers: int = LAYERS, *, projection: str = "t5_proj", text: bool = False) -> Tensors:
    """What ``blip2_pretrained_*.pth`` holds; with ``text``, that of the first stage."""
    state = {"query_tokens": tagged("query_tokens", 1, 32, WIDTH), **norm("ln_vision", VIDEO)}
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(8)[None]
    state |= norm("Qformer.bert.embeddings.LayerNorm", WIDTH)
    for index in range(layers):
        layer = f"Qformer.bert.encoder.layer.{index}"
        state |= attention(f"{layer}.attention", WIDTH) | feed_forward(layer, "_query")
        if index % 2 == 0:
            state |= attention(f"{layer}.crossattention", VIDEO)
        if text:
            state |= feed_forward(layer, "")
    if text:
        state |= linear("vision_proj", 6, WIDTH) | linear("Qformer.cls.predictions.transform.dense", WIDTH, WIDTH)
        state["Qformer.bert.embeddings.word_embeddings.weight"] = tagged("words", 9, WIDTH)
        state["temp"] = torch.tensor(0.07)
    elif projection:
        state |= linear(projection, OUT, WIDTH)
    return state


def hub_name(name: str) -> str:
    """As Hugging Face's converter renames."""
    name = name.replace("Qformer.bert.embeddings.LayerNorm", "qformer.layernorm").replace("Qformer.bert.", "qformer.")
    name = name.replace("attention.self.", "attention.attention.").replace("t5_proj", "language_projection")
    return name.replace("ln_vision", "vision_model.post_layernorm")


def bert(layers: int = LAYERS, prefix: str = "bert.") -> Tensors:
    state = norm(f"{prefix}embeddings.LayerNorm", WIDTH)
    state[f"{prefix}embeddings.word_embeddings.weight"] = tagged("words", 9, WIDTH)
    for index in range(layers):
        layer = f"{prefix}encoder.layer.{index}"
        state |= attention(f"{layer}.attention", WIDTH) | feed_forward(layer, "")
    return state


def write_lavis(path: Path, state: Mapping[str, Tensor] | None = None) -> str:
    torch.save({"model": dict(lavis() if state is None else state)}, path)
    return str(path)


def write_hub(folder: Path, state: Mapping[str, Tensor] | None = None) -> str:
    """A folder as the Hub has it: three files and an index, of which the third, a language model, is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {hub_name(name): tensor for name, tensor in (lavis() if state is None else state).items()}
    found.pop("qformer.embeddings.position_ids", None)
    places = {name: f"model-0000{1 + ('layer.1' in name)}-of-00003.safetensors" for name in found}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in found.items() if places[name] == file}, folder / file)
    places["language_model.shared.weight"] = "model-00003-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    return str(folder)


def write_bert(folder: Path, state: Mapping[str, Tensor] | None = None) -> str:
    folder.mkdir()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in (bert() if state is None else state).items()
    }
    save_file(old, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


# -- fusions -----------------------------------------------------------------------------------------------------------


def build(specs: tuple[str, ...] = ("hear", "see"), **config: Any) -> Fusion:
    """A fusion of the paper's, made narrow, at its start values."""
    torch.manual_seed(3)
    settings = {**PAPER, **SMALL, "out_width": OUT, **config}
    return Fusion(Config(**settings), {name: SPECS[name] for name in specs})


def started(specs: tuple[str, ...] = ("hear", "see"), **config: Any) -> dict[str, Tensor]:
    """The weights of a fusion that read what its configuration names."""
    fusion = build(specs, **config)
    before = torch.get_rng_state()
    fusion.read_start_values()
    assert torch.equal(torch.get_rng_state(), before)  # nothing else becomes random by it
    return dict(fusion.state_dict())


def officially(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of each official name of a variant: the fusion's, and LAVIS's or BERT's that the authors would load into it.

    Written after their remapping; an empty source: it has none, and stays new.
    """
    every, streams = {**PAPER, **config}["cross_attention_every"], config.get("streams", "aligned")
    for kind, suffix, turn in (("vis", "", 0), ("aud", "_aud", 1)):
        prefix = f"Qformer{suffix if streams == 'separate' else ''}.bert"
        units = {f"{prefix}.embeddings.LayerNorm": f"query_norm.{turn}." if streams == "separate" else "query_norm."}
        for index in range(LAYERS):
            crosses = index % 2 == turn if streams == "alternating" else index % every == 0
            layer, own = f"{prefix}.encoder.layer.{index}", f"layers.{index}."
            end = "" if streams == "separate" else f"_{kind}"
            of_self = f"self_attention.{turn}." if streams == "separate" else "self_attention."
            for unit, ours in (("attention", of_self), (f"crossattention{end}", f"cross_attentions.{turn}.")):
                if unit == "attention" or crosses:
                    for part in ("query", "key", "value"):
                        units[f"{layer}.{unit}.self.{part}"] = f"{own}{ours}{part}."
                    units[f"{layer}.{unit}.output.dense"] = f"{own}{ours}out."
                    units[f"{layer}.{unit}.output.LayerNorm"] = f"{own}{ours}norm."
            units[f"{layer}.intermediate_query{end}.dense"] = f"{own}feed_forwards.{turn}.wide."
            units[f"{layer}.output_query{end}.dense"] = f"{own}feed_forwards.{turn}.out."
            units[f"{layer}.output_query{end}.LayerNorm"] = f"{own}feed_forwards.{turn}.norm."
        units[f"ln_{'vision' if kind == 'vis' else 'audio'}"] = f"inputs.{turn}.norm."
        units[f"t5_proj{suffix}"] = f"outputs.{turn}."
        for official, ours in units.items():
            for part in ("weight", "bias"):
                yield f"{ours}{part}", f"{official.replace('_vis.', '.').removesuffix('_vis')}.{part}"


def expected(config: Mapping[str, Any], blip2: Mapping[str, Tensor], of_bert: Mapping[str, Tensor]) -> Tensors:
    """By the fusion's names, what is loaded: the authors load BERT by name, and BLIP-2 over it."""
    found = {}
    for ours, official in officially(config):
        below = official.removeprefix("Qformer_aud.").removeprefix("Qformer.")
        if below in of_bert and official != below:
            found[ours] = of_bert[below]
        if official in blip2:
            found[ours] = blip2[official]
    return found


def assert_loaded(config: Mapping[str, Any], found: Tensors, wanted: Tensors, *, queries: bool = True) -> None:
    """Every tensor has what is wanted, or its start value."""
    fresh = build(**config).state_dict()
    wanted = dict(wanted)
    whole = fresh["queries"].clone()
    if queries:
        whole[:, :32] = tagged("query_tokens", 1, 32, WIDTH)
    wanted["queries"] = whole
    assert wanted.keys() <= fresh.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted.get(name, fresh[name])), name
    assert sum(not torch.equal(found[name], fresh[name]) for name in found) == len(wanted) - (not queries)


@pytest.mark.parametrize("layout", ["lavis", "hub"])
@pytest.mark.parametrize("name", VARIANTS)
def test_each_tensor_comes_from_where_the_authors_take_it(tmp_path: Path, name: str, layout: str) -> None:
    config = VARIANTS[name]
    place = write_lavis(tmp_path / "blip2.pth") if layout == "lavis" else write_hub(tmp_path / "blip2-toy")
    wanted = expected(config, lavis(), {})
    assert len(wanted) == 258  # the listing's 259 with the queries
    assert_loaded(config, started(**config, initialise_from=place), wanted)


def test_random_init_keeps_bert(tmp_path: Path) -> None:
    wanted = expected({}, {}, bert(prefix="bert."))
    assert len(wanted) == 2 + 10 * LAYERS
    assert_loaded({}, started(initialise_from_bert=write_bert(tmp_path / "bert")), wanted, queries=False)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_separate_takes_audio_from_bert(tmp_path: Path, prefix: str) -> None:
    config = VARIANTS["separate"]
    of_bert = {f"bert.{name.removeprefix('bert.')}": tensor for name, tensor in bert(prefix=prefix).items()}
    found = started(
        **config,
        initialise_from=write_hub(tmp_path / "blip2-toy"),
        initialise_from_bert=write_bert(tmp_path / "bert", bert(prefix=prefix)),
    )
    wanted = expected(config, lavis(), of_bert)
    assert len(wanted) == 258 + 2 + 10 * LAYERS
    assert_loaded(config, found, wanted)


def test_feed_forwards_may_be_copied(tmp_path: Path) -> None:
    place = write_lavis(tmp_path / "blip2.pth")
    found = started(initialise_from=place, initialise_feed_forward="copy")
    other = started(initialise_from=place)
    changed = {name for name in found if not torch.equal(found[name], other[name])}
    assert changed == {name for name in found if ".feed_forwards.1." in name}
    for name in changed:
        assert torch.equal(found[name], found[name.replace(".feed_forwards.1.", ".feed_forwards.0.")])


def test_video_alone_is_all_of_blip2(tmp_path: Path) -> None:
    found = started(("see",), initialise_from=write_lavis(tmp_path / "blip2.pth"))
    values = {round(float(tensor.flatten()[0]), 4) for tensor in lavis().values()}
    assert all(round(float(tensor.flatten()[0]), 4) in values for tensor in found.values())
    assert len(found) == 259


def test_audio_alone_takes_what_is_shared(tmp_path: Path) -> None:
    found = started(("hear",), initialise_from=write_lavis(tmp_path / "blip2.pth"))
    fresh = build(("hear",)).state_dict()
    changed = {name for name in found if not torch.equal(found[name], fresh[name])}
    assert changed == {name for name in found if "self_attention" in name or name.startswith("query_norm")}
    with pytest.raises(UsageError, match=r"expected a feature set of video, got none"):
        started(("hear",), streams="separate", initialise_from=str(tmp_path / "blip2.pth"))


def test_a_blip2_of_the_first_stage_has_no_projection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = write_lavis(tmp_path / "blip2_pretrained.pth", lavis(text=True))
    with caplog.at_level(logging.INFO):
        found = started(initialise_from=place)
    assert torch.equal(found["outputs.0.weight"], build().state_dict()["outputs.0.weight"])
    assert "fusion: blip2_pretrained.pth: 257 tensors matched, 139 new (inputs.1.norm.bias, " in caplog.text
    assert "left over (Qformer.bert.embeddings.position_ids, " in caplog.text


def test_of_opt_it_is_another_name(tmp_path: Path) -> None:
    place = write_lavis(tmp_path / "opt.pth", lavis(projection="opt_proj"))
    assert torch.equal(started(initialise_from=place)["outputs.0.bias"], tagged("opt_proj.bias", OUT))


def test_the_report_says_what_is_new_and_left_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        started(out_width=None, initialise_from=write_lavis(tmp_path / "blip2.pth"))
    assert "fusion: blip2.pth: 257 tensors matched, 135 new (" in caplog.text
    assert "3 left over (Qformer.bert.embeddings.position_ids, t5_proj.bias, t5_proj.weight)" in caplog.text


def test_the_hub_is_asked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingWeightsError) as missing:
        started(initialise_from="org/blip2-toy")
    assert "fusion: no initialise_from 'org/blip2-toy': config.json is not in the Hub's cache" in str(missing.value)
    assert "run with fusion.initialise_from=/path/to/folder" in str(missing.value)
    assert "random" not in str(missing.value)
    snapshot = tmp_path / "hub" / "models--org--blip2-toy" / "snapshots" / "c0ffee"
    write_hub(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    assert_loaded({}, started(initialise_from="org/blip2-toy"), expected({}, lavis(), {}))


@pytest.mark.parametrize("gone", ["blip2.pth", "./blip2"])
def test_what_is_not_there_fails(gone: str) -> None:
    with pytest.raises(MissingWeightsError, match=r"fusion: no initialise_from '.*blip2.*': there is no (file|folder)"):
        started(initialise_from=gone)


@pytest.mark.parametrize("layout", ["lavis", "hub"])
@pytest.mark.parametrize(
    "lost", [name for name in lavis() if "position_ids" not in name and "layer.1" not in name][::5]
)
def test_a_tensor_that_is_lost_is_missed(tmp_path: Path, lost: str, layout: str) -> None:
    state = {name: tensor for name, tensor in lavis().items() if name != lost}
    place = write_lavis(tmp_path / "x.pth", state) if layout == "lavis" else write_hub(tmp_path / "x", state)
    with pytest.raises(CheckpointError, match=r"does not fit the fusion \(it has .*\): 1 missing: [\w.]+$"):
        started(initialise_from=place)


def test_a_layer_without_cross_attention_is_missed(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in lavis().items() if "layer.4.crossattention" not in name}
    with pytest.raises(CheckpointError, match=r"10 missing: layers\.4\.cross_attentions\.0\.key\.bias"):
        started(initialise_from=write_lavis(tmp_path / "x.pth", state))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": 8}, r"layers 12, width 16, .*: 84 left over: Qformer\.bert\.encoder\.layer\.10\.attention"),
        ({"layers": 13}, r"26 missing: layers\.12\."),
        ({"cross_attention_every": 4}, r"every second layer\): 30 left over: .*layer\.10\.crossattention"),
        ({"queries": {"video": 8, "audio": 16}}, r"queries\.video 32.*queries is \(1, 32, 16\), expected \(1, 8, 16\)"),
        ({"feed_forward": 32}, r"feed_forward 24, .*36 of another shape"),
        ({"out_width": 12}, r"out_width \(if any\) 20.*outputs\.0\.weight is \(20, 16\), expected \(12, 16\)"),
    ],
    ids=str,
)
def test_other_sizes_fail(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        started(**config, initialise_from=write_lavis(tmp_path / "x.pth"))


def test_other_files_fail(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a BLIP-2, .* A BERT goes to fusion\.initialise_from_bert"):
        started(initialise_from=write_lavis(tmp_path / "x.pth", bert()))
    with pytest.raises(CheckpointError, match=r"expected a BERT, with names bert\.encoder\.\*, and found none"):
        started(initialise_from_bert=write_lavis(tmp_path / "y.pth"))
    authors = {name.replace("crossattention", "crossattention_aud"): tensor for name, tensor in lavis().items()}
    with pytest.raises(CheckpointError, match=r"60 missing: .*; 60 left over: .*crossattention_aud"):
        started(initialise_from=write_lavis(tmp_path / "z.pth", authors))
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(CheckpointError, match=r"torn\.pth: cannot be read as a weight file"):
        started(initialise_from=str(tmp_path / "torn.pth"))


def test_which_video_must_be_said() -> None:
    specs = {**SPECS, "look": FeatureSpec(name="look", encoder="toy", modality="video", dim=VIDEO)}
    fusion = Fusion(Config(**{**PAPER, **SMALL, "initialise_from": "x.pth"}), specs)
    with pytest.raises(UsageError, match=r"expected one feature set of video, got see, look; choose with features"):
        fusion.read_start_values()
    alone = build(("see",), streams="separate", initialise_from="x.pth", initialise_from_bert="y.pth")
    with pytest.raises(UsageError, match=r"expected a feature set beside see"):
        alone.read_start_values()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"initialise_from": "x"},
            r"expected norm=post and project_inputs=false.* got norm=pre and project_inputs=true",
        ),
        ({"initialise_from_bert": "x"}, r"initialise_from_bert: expected norm=post"),
        (
            {**PAPER, "initialise_from": "x", "initialise_from_bert": "y"},
            r"streams=aligned nothing would be left of it",
        ),
        ({**PAPER, "heads": 8, "initialise_from": "x"}, r"heads: expected 12 with initialise_from, .* got 8"),
        ({"initialise_feed_forward": "copy"}, r"nothing to copy without initialise_from"),
    ],
)
def test_settings_that_do_not_go_together_fail(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check({"fusion": {"name": "qformer", **config}}, "toy")
    Config(**{**PAPER, "initialise_from": "x", "initialise_feed_forward": "copy"})
    Config(**{**PAPER, "initialise_from": "x", "initialise_from_bert": "y", "streams": "separate"})


# -- when they are read ------------------------------------------------------------------------------------------------


def test_a_new_training_reads_them_and_a_resumed_one_does_not(tmp_path: Path) -> None:
    place = Path(write_lavis(tmp_path / "blip2.pth", small := {**lavis(layers=2), **norm("ln_vision", 4)}))
    for part in ("key", "value"):
        name = f"Qformer.bert.encoder.layer.0.crossattention.self.{part}.weight"
        small[name] = tagged(name, WIDTH, 4)
    write_lavis(place, small)
    clips = loop_toys.clips(8)
    plain = loop_toys.config(max_steps=1, lr=1e-9, weight_decay=0.0)
    fusion = {"name": "qformer", **PAPER, **SMALL, "layers": 2, "initialise_from": str(place), "dropout": 0.0}
    config = check({**plain.model_dump(mode="json"), "fusion": fusion}, "toy")

    def run(folder: Path) -> dict[str, Tensor]:
        train(config, sources=loop_toys.sources(clips), train_clips=clips, val_clips=[], run_folder=folder)
        return load_file(folder / "checkpoints" / "last" / "model.safetensors")

    first = run(tmp_path / "run")
    name = "layers.1.feed_forwards.0.out.weight"
    wanted = small["Qformer.bert.encoder.layer.1.output_query.dense.weight"]
    torch.testing.assert_close(first[f"fusion.{name}"], wanted, rtol=0, atol=1e-6)
    place.unlink()
    again = run(tmp_path / "run")  # goes on from the checkpoint
    assert all(torch.equal(first[key], again[key]) for key in first)
    loaded = checkpoint.load(tmp_path / "run" / "checkpoints" / "best")
    assert torch.equal(loaded.captioner.fusion.state_dict()[name], first[f"fusion.{name}"])
    assert loaded.config.fusion["initialise_from"] == str(place)
    with pytest.raises(MissingWeightsError, match=r"no initialise_from"):
        run(tmp_path / "another")


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["alternating", "separate"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_streams_keep_what_every_fusion_promises(streams: str, norm: str) -> None:
    def fused(*positions: Any, **maps: bool) -> Any:
        return test_fusions.build("qformer", streams=streams, norm=norm)(*positions, **maps)

    test_fusions.assert_same(fused(batch()), fused(batch(longer=7, junk=100.0)))
    told = fused(batch(), return_attention=True)
    test_fusions.assert_same(fused(batch()), told)
    looked = [(found.layer, found.keys) for found in told.attention if found.keys != "all"]
    if streams == "alternating":
        assert looked == [(0, "see"), (1, "hear")]
    else:
        assert looked == [(0, "see"), (0, "hear"), (1, "see"), (1, "hear")]
    for found in told.attention:
        if found.keys == "all":
            torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:3]))
            assert found.weights.shape[-1] == told.mask.shape[1]
            crossing = found.weights[..., :8, 8:].abs().max() + found.weights[..., 8:, :8].abs().max()
            assert (crossing == 0) == (streams == "separate")
    fusion = test_fusions.build("qformer", streams=streams, norm=norm)
    data = fusion(batch()).data
    (data * torch.randn(data.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if not key.endswith("key.bias"):
            assert parameter.grad.abs().max() > 1e-6, key


@pytest.mark.parametrize("streams", ["aligned", "alternating", "separate"])
def test_only_separate_streams_do_not_know_of_each_other(streams: str) -> None:
    fusion = test_fusions.build("qformer", streams=streams, layers=3)
    fused, other = fusion(batch()), fusion(batch({"see": (4, 3, 0, 0, 1), "hear": (0, 0, 0, 0, 0)}))
    of_video = torch.tensor([fused.sources[index] == "see" for index in fused.source])
    same = torch.equal(fused.data[:, of_video], other.data[:, of_video])
    assert same == (streams == "separate")
    assert not torch.equal(fused.data[:, ~of_video], other.data[:, ~of_video])


def test_separate_is_two_qformers() -> None:
    whole = alive(build(streams="separate"))
    given, found = batch_of_both(), []
    for stream, name in enumerate(("see", "hear")):
        alone = build((name,), queries={"video": 32, "audio": 16}).eval()
        state = {}
        for key, tensor in whole.state_dict().items():
            parts = key.split(".")
            places = [
                place for place, part in enumerate(parts) if part.isdecimal() and place != 1 - (parts[0] != "layers")
            ]
            index = [place for place in places if parts[0] != "layers" or place > 1]
            if not index:
                state[key] = tensor[:, :32] if stream == 0 else tensor[:, 32:]
            elif parts[index[0]] == str(stream):
                drop = parts[0] == "query_norm" or "self_attention" in parts
                parts[index[0]] = "" if drop else "0"
                state[".".join(part for part in parts if part)] = tensor
        alone.load_state_dict(state)
        found.append(alone(given).data)
    torch.testing.assert_close(whole(given).data, torch.cat(found[::-1], dim=1), rtol=0, atol=1e-5)


def batch_of_both() -> Any:
    from avpipe.train.batch import Batch

    sizes = {"see": (2, 5, VIDEO), "hear": (2, 4, AUDIO)}
    return Batch(
        clip_ids=("a", "b"),
        features={name: tagged(name, *size) for name, size in sizes.items()},
        mask={name: torch.ones(size[:2], dtype=torch.bool) for name, size in sizes.items()},
        pts_seconds={name: torch.zeros(size[:2]) for name, size in sizes.items()},
        present={name: torch.ones(2, dtype=torch.bool) for name in sizes},
    )


def test_alternating_is_every_layer_with_half_of_what_is_seen_left_out() -> None:
    # With the norm before a sub-layer, an attention whose last matrix is zero is none.
    every = alive(build(norm="pre", cross_attention_every=1))
    turns = build(norm="pre", streams="alternating").eval()
    with torch.no_grad():
        for name, parameter in every.named_parameters():
            if ".cross_attentions." in name and ".out." in name:
                layer, stream = int(name.split(".")[1]), int(name.split(".")[3])
                parameter.mul_(layer % 2 == stream)
    own = turns.state_dict()
    turns.load_state_dict({name: tensor for name, tensor in every.state_dict().items() if name in own})
    given = batch_of_both()
    torch.testing.assert_close(turns(given).data, every(given).data, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("every", "streams", "turns"),
    [
        (1, 2, [[0], [1], [0], [1]]),
        (2, 2, [[0], [1], [0], [1]]),
        (3, 2, [[0], [1], [], [0]]),
        (1, 3, [[0], [1], [2], [0]]),
        (1, 1, [[0], [0], [0], [0]]),
    ],
)
def test_whose_turn_it_is(every: int, streams: int, turns: list[list[int]]) -> None:
    specs = {
        name: FeatureSpec(name=name, encoder="toy", modality=modality, dim=6)
        for name, modality in (("a", "video"), ("b", "audio"), ("c", "text"))[:streams]
    }
    config = Config(layers=4, cross_attention_every=every, streams="alternating")
    assert Fusion(config, specs).crossing == turns


def test_more_streams_than_turns_fail() -> None:
    with pytest.raises(UsageError, match=r"fusion\.layers: expected at least 2 .*\(see, hear\), got 1"):
        build(layers=1, streams="alternating")


# -- the whole listing, beside the project -----------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("layout", ["lavis", "hf"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_listing(shared: Path, tmp_path: Path, name: str, layout: str) -> None:
    file = shared / "golden_heads" / "layouts" / "blip2_to_mmqformer.json"
    if not file.is_file():
        pytest.skip("no golden_heads in ../shared")
    listing = json.loads(file.read_text(encoding="utf-8"))["variants"][name]["keys"]
    config, is_separate = VARIANTS[name], name == "separate"
    place = write_lavis(tmp_path / "x.pth") if layout == "lavis" else write_hub(tmp_path / "x")
    of_bert = bert()
    places = {"initialise_from": place}
    if is_separate:
        places["initialise_from_bert"] = write_bert(tmp_path / "bert")
    found, fresh, source = started(**config, **places), build(**config).state_dict(), lavis()
    by_hub_name = {hub_name(key): tensor for key, tensor in source.items()}
    kept = None if is_separate else started(**config, initialise_from_bert=write_bert(tmp_path / "bert_alone"))
    seen = set()
    for official, entry in listing.items():
        if official == "query_tokens_aud":
            continue
        ours = _blip2.our_name(official, is_separate=is_separate)
        seen.add(ours)
        if official == "query_tokens":
            assert torch.equal(found[ours][:, :32], source[entry["lavis"]])
            assert torch.equal(found[ours][:, 32:], fresh[ours][:, 32:])
            continue
        start, given = entry["init"], fresh[ours]
        if start == "blip2":
            given = source[entry["lavis"]] if layout == "lavis" else by_hub_name[entry["hf"]]
        elif start == "bert":
            given = of_bert[entry["bert"]]
        elif start in ("zeros", "ones"):
            assert torch.equal(given, torch.zeros_like(given) if start == "zeros" else torch.ones_like(given)), official
        elif start == "normal(0,0.02)":
            assert given.std().item() == pytest.approx(0.02, rel=0.25), official
        assert torch.equal(found[ours], given), official
        if kept is not None:  # Random_Init
            named = entry["random_init"].removeprefix("bert:")
            assert torch.equal(kept[ours], of_bert.get(named, fresh[ours])), official
    assert seen == set(fresh)


@pytest.mark.shared
@pytest.mark.parametrize("name", VARIANTS)
def test_at_full_size_every_shape_is_the_listings(shared: Path, name: str) -> None:
    file = shared / "golden_heads" / "layouts" / "blip2_to_mmqformer.json"
    if not file.is_file():
        pytest.skip("no golden_heads in ../shared")
    listing = json.loads(file.read_text(encoding="utf-8"))["variants"][name]
    specs = {
        "hear": FeatureSpec(name="hear", encoder="toy", modality="audio", dim=768),
        "see": FeatureSpec(name="see", encoder="toy", modality="video", dim=1408),
    }
    with torch.device("meta"):
        own = dict(Fusion(Config(**{**PAPER, "out_width": 2048, **VARIANTS[name]}), specs).named_parameters())
    assert sum(parameter.numel() for parameter in own.values()) == listing["parameters"]
    for official, entry in listing["keys"].items():
        if not official.startswith("query_tokens"):
            shape = own[_blip2.our_name(official, is_separate=name == "separate")].shape
            assert list(shape) == entry["shape"], official
