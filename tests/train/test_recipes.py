"""The recipes of the published systems: settings, trainings of small forms, resuming anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train import checkpoint
from avpipe.train.config import RunConfig, read, recipes
from avpipe.train.decoders import t5
from avpipe.train.fusions import qformer
from avpipe.train.learner import Learner
from avpipe.train.loop import train
from avpipe.train.optimizer import freeze, parameter_groups
from tests.train import loop_toys as toys
from tests.train import pretrained_toys
from tests.train.test_av_tokens_public_weights import as_on_the_hub, cav_mae_file
from tests.train.test_loop import assert_same
from tests.train.toys import tokenizer

SMALL = [name for name in recipes() if name.endswith("_small")]
DOCS = Path(__file__).parents[2] / "docs"
PAPERS = [name for name in recipes() if name not in ("default", *SMALL)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(config: RunConfig, folder: Path, stop_at: int = 0) -> Any:
    """Train on the toy; stop after so many steps."""

    def on_event(event: Mapping[str, Any]) -> None:
        if stop_at and event.get("event") == "step" and event["step"] >= stop_at:
            raise KeyboardInterrupt

    clips, val = toys.clips(12), toys.clips(6, "val")
    return train(
        config, sources=toys.sources(clips, val), train_clips=clips, val_clips=val, run_folder=folder,
        score=toys.score, on_event=on_event,
    )  # fmt: skip


def test_each_system_has_a_recipe_and_a_small_one() -> None:
    systems = {"micap", "local_global", "avcap", "resnet_gpt2", "multimodal_blip2"}
    assert {name.removesuffix("_small") for name in SMALL} == systems
    assert {name.partition("_stage")[0].removesuffix("_pretrain") for name in PAPERS} == systems


@pytest.mark.parametrize("name", recipes())
def test_its_head_tells_what_is_known_and_what_is_chosen(name: str) -> None:
    text = (Path(__file__).parents[2] / "avpipe" / "train" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nfusion:")]
    assert all(line.startswith("#") for line in head.splitlines())
    if name in PAPERS:
        for said in ("Known", "Our choice", "What caching changes", "Features: "):
            assert said in head.replace("features: ", "Features: "), said
        assert "arXiv" in head or "github" in head


OVERRIDE = re.compile(
    r"'([a-z_]+\.[\w.]+=[^']*)'|\b((?:train|fusion|decoder|objectives|generate|tokenizer)\.[\w.]+=\S*)"
)


def advised(text: str) -> Iterator[tuple[str, list[str]]]:
    """Overrides that a text names, each with those that stand near it."""
    lines = text.splitlines()
    found = [[(quoted or bare).rstrip(".;,:)`") for quoted, bare in OVERRIDE.findall(line)] for line in lines]
    for index, own in enumerate(found):
        near = [other for group in found[max(0, index - 2) : index + 3] for other in group]
        for one in own:
            yield one, near


def heads() -> Iterator[tuple[str, str, list[str]]]:
    for name in recipes():
        text = (Path(__file__).parents[2] / "avpipe" / "train" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        for one, near in advised(text[: text.index("\nfusion:")]):
            yield name, one, near


@pytest.mark.parametrize(
    ("name", "override", "near"), list(heads()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_a_head_advises_is_understood(name: str, override: str, near: list[str]) -> None:
    try:
        read(name, [override])
    except ConfigError:
        read(name, near)  # some go together


@pytest.mark.parametrize(("override", "near"), list(advised((DOCS / "systems.md").read_text(encoding="utf-8"))))
def test_what_the_page_of_systems_advises_is_understood_by_a_recipe(override: str, near: list[str]) -> None:
    line = [other for other in near if other.startswith("objectives.")] if override.startswith("objectives.") else []
    understood = []
    for name in PAPERS:
        with suppress(ConfigError):
            read(name, [override, *line])
            understood.append(name)
    assert understood


def test_advice_that_is_not_understood_is_found() -> None:
    [(one, _)] = advised("say train.lrr=1.")
    with pytest.raises(ConfigError):
        read("micap", [one])


def test_the_stages_are_the_settings_of_the_decoder() -> None:
    for name, stage in (("multimodal_blip2_stage1", t5.STAGE_ONE), ("multimodal_blip2_stage2", t5.STAGE_TWO)):
        assert {key: read(name).decoder[key] for key in stage if key != "lora"} == {
            k: v for k, v in stage.items() if k != "lora"
        }
        fusion = read(name).fusion
        assert {key: fusion[key] for key in qformer.PAPER if key not in ("queries", "absent")} == {
            key: value for key, value in qformer.PAPER.items() if key not in ("queries", "absent")
        }
    assert read("multimodal_blip2_stage2").decoder["lora"]["rank"] == t5.STAGE_TWO["lora"]["rank"]


# -- small recipes: resuming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_broken_off_anywhere_a_small_recipe_takes_the_same_steps(tmp_path: Path, name: str) -> None:
    quick = ["train.epochs=2", "train.batch_size=4", "train.warmup_steps=2", "train.validate_every=1",
             "train.save_every=2", "train.log_every=1", "generate.max_tokens=6", "generate.beams=2",
             "tokenizer.vocabulary_size=300"]  # fmt: skip
    config = read(name, quick)
    unbroken = tmp_path / "unbroken"
    result = run(config, unbroken)
    assert result.step == 6
    for step in range(1, 6):
        broken = tmp_path / f"broken{step}"
        with pytest.raises(KeyboardInterrupt):
            run(config, broken, stop_at=step)
        run(config, broken)
        assert_same(broken, unbroken)


# -- the papers' recipes: in small, from checkpoints made on the spot --------------------------------------------------

WORDS = len(pretrained_toys.WORDS)


def bert(folder: Path) -> str:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40,
    )  # fmt: skip
    pretrained_toys.written(transformers.BertForMaskedLM(config), folder)
    return str(folder)


def gpt2(folder: Path) -> str:
    config = transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=40)
    pretrained_toys.written(transformers.GPT2LMHeadModel(config), folder)
    return str(folder)


def words(folder: Path) -> str:
    pretrained_toys.tokenizer_in(folder)
    return str(folder)


QUICK = ["train.epochs=1", "train.max_steps=2", "train.batch_size=4", "train.accumulate=1", "generate.max_tokens=6"]
NARROW = ["fusion.width=16", "fusion.heads=2"]


def small_micap(folder: Path) -> list[str]:
    return [*NARROW, "fusion.feed_forward=24", f"decoder.weights={bert(folder / 'bert')}", "decoder.layers=2",
            f"tokenizer.name={words(folder / 'words')}"]  # fmt: skip


def small_local_global(folder: Path) -> list[str]:
    sizes = ["decoder.width=16", "decoder.heads=2", "decoder.feed_forward=24", "decoder.layers=1"]
    return [*NARROW, "fusion.feed_forward=24", *sizes, f"tokenizer.name={words(folder / 'words')}"]


def small_resnet_gpt2(folder: Path) -> list[str]:
    return [*NARROW, "fusion.feed_forward=24", f"decoder.weights={gpt2(folder / 'gpt2')}",
            f"tokenizer.name={words(folder / 'words')}"]  # fmt: skip


IN_SMALL: dict[str, Callable[[Path], list[str]]] = {
    "micap": small_micap,
    "local_global": small_local_global,
    "local_global_pretrain": small_local_global,
    "resnet_gpt2": small_resnet_gpt2,
}


@pytest.mark.parametrize("name", IN_SMALL)
def test_a_papers_recipe_trains_from_checkpoints_of_its_kind(tmp_path: Path, name: str) -> None:
    config = read(name, [*QUICK, *IN_SMALL[name](tmp_path)])
    result = run(config, tmp_path / "run")
    assert result.step == 2
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best").config == config
    # Warmup, schedule and betas are the recipe's.
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2


def learner_of(config: RunConfig, vocabulary_size: int = WORDS) -> Learner:
    specs = {
        "eyes": FeatureSpec(name="eyes", encoder="toy", modality="video", dim=4),
        "ears": FeatureSpec(name="ears", encoder="toy", modality="audio", dim=4),
    }
    learner = Learner(checkpoint.build(config, specs, tokenizer(vocabulary_size)), config.objectives, specs)
    freeze(learner.named(), config.train.groups)
    return learner


def told(config: RunConfig, learner: Learner) -> dict[str, tuple[float, float]]:
    """Of each trained parameter: its peak learning rate and weight decay."""
    names = {id(parameter): name for name, parameter in learner.named()}
    return {
        names[id(p)]: (config.train.lr * group["scale"], group["weight_decay"])
        for group in parameter_groups(learner.named(), config.train)
        for p in group["params"]
    }


def test_micap_trains_what_is_pretrained_slowly_and_what_is_new_fast(tmp_path: Path) -> None:
    config = read("micap", small_micap(tmp_path))
    found = told(config, learner_of(config))
    slow, fast = (pytest.approx(2e-6), 0.0), (pytest.approx(6e-4), 0.01)
    assert found["decoder.bert.embeddings.word_embeddings.weight"] == slow
    assert found["decoder.bert.encoder.layer.1.attention.self.query.weight"] == slow
    assert found["decoder.transform.dense.weight"] == slow
    assert found["decoder.bert.encoder.layer.1.crossattention.self.query.weight"] == fast
    assert found["decoder.bert.encoder.layer.1.crossattention.self.query.bias"] == (pytest.approx(6e-4), 0.0)
    assert found["fusion.streams.video.positions.weight"] == (pytest.approx(6e-4), 0.0)
    assert found["objectives.contrastive.log_scale"][1] == 0.0
    new = [name for name in found if not name.startswith("decoder")]
    assert all(found[name][0] == pytest.approx(6e-4) for name in new)


def test_resnet_gpt2_trains_the_language_model_at_half_the_rate(tmp_path: Path) -> None:
    config = read("resnet_gpt2", small_resnet_gpt2(tmp_path))
    found = told(config, learner_of(config))
    assert found["decoder.transformer.wte.weight"][0] == pytest.approx(5e-5)
    assert found["decoder.transformer.h.0.crossattention.c_attn.weight"][0] == pytest.approx(1e-4)
    assert found["decoder.transformer.h.1.ln_cross_attn.weight"][0] == pytest.approx(1e-4)
    assert found["decoder.transformer.h.1.ln_1.weight"][0] == pytest.approx(5e-5)


def avcap_config(folder: Path, *more: str) -> RunConfig:
    place = as_on_the_hub(folder)
    sizes = ["decoder.width=16", "decoder.layers=2", "decoder.heads=2", "decoder.feed_forward=24",
             "decoder.positions=12", "fusion.layers=2", "fusion.out_width=16"]  # fmt: skip
    from_files = [f"fusion.initialise_from={cav_mae_file(folder)}", f"fusion.initialise_projection_from={place}",
                  f"decoder.initialise_from={place}"]  # fmt: skip
    return read("avcap", [*NARROW, *sizes, *from_files, *more])


@pytest.mark.parametrize(
    ("more", "frozen"),
    [
        ((), ("decoder",)),
        (("train.groups=[]",), ()),
        (('train.groups=[{match: "^(decoder|fusion.projection)", frozen: true}]',), ("decoder", "fusion.projection")),
    ],
    ids=["frozen decoder", "all trained", "as the code runs"],
)
def test_avcap_freezes_what_the_recipe_says(tmp_path: Path, more: tuple[str, ...], frozen: tuple[str, ...]) -> None:
    config = avcap_config(tmp_path, *more)
    learner = learner_of(config, 29)
    checkpoint.read_start_values(learner.captioner)
    found = told(config, learner)
    for name, _ in learner.named():
        assert (name in found) != name.startswith(frozen or "nothing"), name
    assert set(found.values()) == {(1e-4, 5e-7)}  # norms and biases, too


def test_the_schedules_are_the_papers() -> None:
    """Peak, warmup, way down, betas, batch: as the recipes' heads say."""

    def of(name: str) -> dict[str, Any]:
        return read(name).train.model_dump()

    micap, avcap = of("micap"), of("avcap")
    assert (micap["schedule"], micap["warmup_steps"], micap["clip_norm"], micap["seed"]) == ("linear", "5%", 1.0, 2448)
    assert (micap["batch_size"] * micap["accumulate"], micap["epochs"]) == (28, 20)
    assert (avcap["schedule"], avcap["warmup_steps"], avcap["warmup_from"]) == ("cosine", "1 epoch", 2e-7)
    assert (avcap["final_lr"], avcap["clip_norm"], avcap["betas"]) == (1e-6, None, (0.95, 0.999))
    pretrain = read("local_global_pretrain")
    assert pretrain.train.targets == ("current", "next")
    assert pretrain.objectives["modality_balanced"]["alpha"] == 10
    assert pretrain.tokenizer.next_begin == "[unused1]"


@pytest.mark.parametrize("change", ["train.schedule=constant", "train.captions_per_clip=1", "fusion.share=shared"])
def test_a_changed_setting_is_another_run(change: str) -> None:
    assert read("micap", [change]) != read("micap")
