"""What every objective promises, whichever it is; each one's numbers; and what they do to a small captioner."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.config import Config
from avpipe.pipeline.errors import ConfigError
from avpipe.train import decoders, fusions
from avpipe.train.batch import Batch
from avpipe.train.captioner import Captioner
from avpipe.train.learner import Learner
from avpipe.train.objective import BaseObjective, ObjectiveConfig, aux_keys
from avpipe.train.objectives import REGISTRY, cross_entropy, g_blend, modality_balanced
from avpipe.train.objectives._alone import Alone, only
from avpipe.train.objectives.contrastive import info_nce
from tests.train import toys
from tests.train.toys import LENGTHS, SPECS, alive, batch, small_config

NAMES = REGISTRY.names()
STORED = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "objectives.json.gz").read_bytes()))
VOCABULARY = 23
SIGNED = {"scst"}
"""A reward against others may be a loss below 0."""


def captioned(lengths: Any = LENGTHS, *, longer: int = 0, more_tokens: int = 0, **more: Any) -> Batch:
    """The toy batch with two captions of the first clip and one of each other."""
    clips = batch(lengths, longer=longer, **more)
    caption_clip = torch.tensor([0, *range(len(clips))])
    counts = [5 + index % 3 for index in range(len(caption_clip))]
    tokens = torch.full((len(counts), max(counts) + more_tokens), 7 if more_tokens else 0)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, count in enumerate(counts):
        generator = torch.Generator().manual_seed(row)
        tokens[row, :count] = torch.randint(1, VOCABULARY, (count,), generator=generator)
        mask[row, :count] = True
    return replace(clips, tokens=tokens, token_mask=mask, caption_clip=caption_clip)


def captioner(specs: Any = SPECS, **fusion: Any) -> Captioner:
    torch.manual_seed(0)
    module = fusions.REGISTRY.load("coattention")
    fused = module.Fusion(small_config(module, **{"pool": "post", "layers": 1, **fusion}), specs)
    module = decoders.REGISTRY.load("transformer")
    decoder = module.Decoder(small_config(module, dropout=0.0), fused_width=fused.width, vocabulary_size=VOCABULARY)
    whole = alive(Captioner(fused, decoder))
    assert isinstance(whole, Captioner)
    return whole


def learner(name: str, specs: Any = SPECS, fusion: Any = None, **config: Any) -> Learner:
    """With one objective alone."""
    settings = {name: {"weight": 1.0, **config}}
    if name != "cross_entropy":
        settings = {"cross_entropy": {"weight": 0.0}, **settings}
    whole = Learner(captioner(specs, **(fusion or {})), settings, specs)
    whole.prepare(training_clips(), toys.tokenizer(VOCABULARY))
    return whole


def training_clips() -> list[Clip]:
    """Clips of the toy batch, with two captions each of words that the toy captioner says, again and again."""
    ids = [[21] * (row % 2) + [3] * (4 + row % 5) + [5] * (row % 7) + [22] * (row % 3) for row in range(10)]
    texts = [toys.tokenizer(VOCABULARY).decode(row) for row in ids]
    return toys.clips([texts[row : row + 2] for row in range(0, 10, 2)])


def only_objective(of: Learner) -> Any:
    [objective] = of.objectives.values()
    return objective


# -- what every objective promises -------------------------------------------------------------------------------------


def test_there_are_objectives() -> None:
    assert {"cross_entropy", "contrastive", "modality_balanced", "g_blend", "scst"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name: str) -> None:
    module = REGISTRY.load(name)
    assert REGISTRY.summary(name).endswith(".")
    assert issubclass(module.Config, ObjectiveConfig)
    assert issubclass(module.Config, Config)
    assert issubclass(module.Objective, BaseObjective)
    assert module.Config().weight > 0
    for key, field in module.Config.model_fields.items():
        assert field.description, f"{key}: no docstring under it"


@pytest.mark.parametrize("name", NAMES)
def test_gives_losses_and_gradients(name: str) -> None:
    learns = learner(name)
    total, parts = learns(captioned())
    assert total.shape == ()
    assert total.isfinite()
    assert total != 0 if name in SIGNED else total > 0
    assert parts
    for key, value in parts.items():
        assert key == name or key.startswith(f"{name}."), key
        assert value.shape == ()
        assert not value.requires_grad
    total.backward()
    for key, parameter in learns.objectives.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    reached = [p.grad for p in learns.captioner.fusion.parameters() if p.grad is not None]
    assert reached
    assert all(grad.isfinite().all() for grad in reached)
    assert sum(grad.abs().sum() for grad in reached) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_multiplies(name: str) -> None:
    once, _ = learner(name).eval()(captioned())
    thrice, _ = learner(name, weight=3.0).eval()(captioned())
    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_junk_in_it_change_no_loss(name: str) -> None:
    learns = learner(name).eval()
    before, _ = learns(captioned())
    after, _ = learns(captioned(longer=3, junk=50.0, more_tokens=2))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    other, _ = learns(captioned(seed=1))
    assert abs(other - before) > 1e-4  # the twin: real rows do


@pytest.mark.parametrize("name", NAMES)
def test_clips_without_anything_give_finite_numbers(name: str) -> None:
    learns = learner(name)
    total, _ = learns(captioned({"see": (0, 0), "hear": (0, 0)}))
    assert total.isfinite()
    total.backward()
    assert all(p.grad.isfinite().all() for p in learns.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_all_that_it_remembers(name: str) -> None:
    """What a checkpoint holds makes another one go on alike."""
    one, other = learner(name), learner(name)
    batches = [captioned(seed=seed) for seed in range(4)]

    def measured(split: str, most: int) -> Iterator[Batch]:
        yield batches[0 if split == "train" else 1]

    one.after_epoch(0, measured)
    for index, clips in enumerate(batches):
        total, _ = one(clips)
        total.backward()
        with torch.no_grad():
            for parameter in one.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
                    parameter.grad = None
        one.after_update()
        one.after_epoch(index + 1, measured)
    other.captioner.load_state_dict(one.captioner.state_dict())
    other.objectives.load_state_dict(one.objectives.state_dict())
    for _ in range(2):
        expected, parts = one(batches[0])
        total, found = other(batches[0])
        assert torch.equal(total, expected)
        assert found.keys() == parts.keys()
        assert all(torch.equal(found[key], value) for key, value in parts.items())


@pytest.mark.parametrize("name", NAMES)
def test_measuring_draws_nothing_and_trains_nothing(name: str) -> None:
    learns = learner(name, fusion={"dropout": 0.5}).train()
    before, weights = (
        torch.get_rng_state(),
        {key: value.clone() for key, value in learns.captioner.state_dict().items()},
    )
    learns.after_epoch(0, lambda split, most: iter([captioned()]))
    assert learns.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[key]) for key, value in learns.captioner.state_dict().items())


# -- on every fusion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", fusions.REGISTRY.names())
def test_each_modality_alone_on_every_fusion(fusion: str) -> None:
    module = fusions.REGISTRY.load(fusion)
    torch.manual_seed(0)
    fused = module.Fusion(small_config(module), SPECS)
    module = decoders.REGISTRY.load("transformer")
    decoder = module.Decoder(small_config(module), fused_width=fused.width, vocabulary_size=VOCABULARY)
    settings = {"cross_entropy": {}, "modality_balanced": {}}
    learns = Learner(Captioner(fused, decoder), settings, SPECS)
    total, parts = learns(captioned())
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in learns.parameters() if p.grad is not None)
    assert parts["modality_balanced.audio"] != parts["modality_balanced.video"]


@pytest.mark.parametrize("fusion", fusions.REGISTRY.names())
def test_what_a_fusion_gives_to_objectives_is_what_it_gives_in_training(fusion: str) -> None:
    module = fusions.REGISTRY.load(fusion)
    fused = module.Fusion(small_config(module), SPECS)
    assert aux_keys(fused, SPECS) == set(fused(batch()).aux)


# -- together ----------------------------------------------------------------------------------------------------------


def test_weighted_losses_are_summed() -> None:
    settings = {"cross_entropy": {}, "contrastive": {"weight": 0.5}, "modality_balanced": {"weight": 2.0}}
    total, parts = Learner(captioner(), settings, SPECS).eval()(captioned())
    expected = parts["cross_entropy"] + 0.5 * parts["contrastive"]
    for kind in ("audio", "video"):
        expected = expected + 2 * parts[f"modality_balanced.w_{kind}"] * parts[f"modality_balanced.{kind}"]
    torch.testing.assert_close(total, expected)
    assert parts["contrastive.temperature"].item() == pytest.approx(0.07)


def test_an_objective_of_weight_zero_is_not_built() -> None:
    whole = Learner(captioner(pool="none"), {"cross_entropy": {}, "contrastive": {"weight": 0}}, SPECS)
    assert list(whole.objectives) == ["cross_entropy"]
    with pytest.raises(ValueError, match="at least one of a weight above 0"):
        Learner(captioner(), {"cross_entropy": {"weight": 0}}, SPECS)(captioned())


def test_what_objectives_lack_is_told_at_once() -> None:
    one = {"see": SPECS["see"]}
    settings = {"cross_entropy": {}, "contrastive": {}, "modality_balanced": {}}
    with pytest.raises(ConfigError) as caught:
        Learner(captioner(one), settings, one)
    assert len(caught.value.faults) == 2
    assert caught.value.faults[0].startswith("objectives.contrastive: ")
    assert (
        "fusion coattention gives no pooled vectors of see (video); try fusion=coattention fusion.pool=post"
        in (caught.value.faults[0])
    )
    assert caught.value.faults[1] == (
        "objectives.modality_balanced: weighs modalities against one another, expected feature sets of two or more, "
        "got see (video); add another by --features, or leave out --modalities"
    )


def test_a_fusion_that_pools_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objectives\.contrastive: .*fusion\.pool=post"):
        learner("contrastive", fusion={"pool": "none"})
    assert aux_keys(captioner(pool="none").fusion, SPECS) == set()
    fusion = captioner().fusion.train()
    assert aux_keys(fusion, SPECS) == {"pooled_video", "pooled_audio", "paired"}
    assert fusion.training


# -- what captions cost ------------------------------------------------------------------------------------------------


def test_smoothed_kl_gives_the_authors_numbers() -> None:
    stored = {key: torch.tensor(value) for key, value in STORED["label_smoothing"].items()}
    targets = stored["ls_targets"]
    for dtype, tolerance in ((torch.float64, 2e-6), (torch.float32, 2e-6)):  # the authors' are of float32 alone
        logits = stored["ls_logits"].to(dtype).requires_grad_()
        for kept, smoothing, name in (
            (targets.masked_fill(targets == 0, -100), 0.1, "loss_ignore0"),
            (targets, 0.1, "loss_no_ignore"),
            (targets, 0.2, "loss_eps02_no_ignore"),
        ):
            found = cross_entropy.smoothed_kl(logits, kept, smoothing)
            expected = stored[f"expected_ls_{name}"].to(dtype).squeeze()
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        cross_entropy.smoothed_kl(logits, targets.masked_fill(targets == 0, -100), 0.1).backward()
        assert logits.grad is not None
        expected = stored["expected_ls_grad_ignore0"].to(dtype)
        torch.testing.assert_close(logits.grad, expected, rtol=0, atol=tolerance)
    # The twin: torch's smoothing is another number.
    standard = F.cross_entropy(stored["ls_logits"], targets, label_smoothing=0.1)
    assert abs(standard - stored["expected_ls_loss_no_ignore"]) > 0.5


def test_smoothed_kl_is_its_formula() -> None:
    """Written out, in float64, to 1e-12."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    targets = torch.tensor([3, 0, -100, 10, 5, -100, 5])
    rows = []
    for row, target in zip(logits, targets.tolist(), strict=True):
        if target >= 0:
            q = torch.full((11,), 0.3 / 10, dtype=torch.float64)
            q[target] = 0.7
            rows.append((q * (q.log() - row.softmax(0).log())).sum())
    found = cross_entropy.smoothed_kl(logits, targets, 0.3)
    torch.testing.assert_close(found, torch.stack(rows).mean(), rtol=0, atol=1e-12)
    # 0 where p is q
    q = torch.full((1, 11), 0.03, dtype=torch.float64)
    q[0, 4] = 0.7
    assert cross_entropy.smoothed_kl(q.log(), torch.tensor([4]), 0.3).abs() < 1e-12
    assert cross_entropy.smoothed_kl(logits, torch.full((7,), -100), 0.3) == 0


def test_without_smoothing_both_forms_are_the_cross_entropy() -> None:
    clips = captioned()
    [standard, kl] = [learner("cross_entropy", form=form).eval()(clips)[0] for form in ("standard", "kl")]
    torch.testing.assert_close(standard, kl)
    logits = captioner()(clips)
    assert clips.tokens is not None
    assert clips.token_mask is not None
    targets = clips.tokens[:, 1:].masked_fill(~clips.token_mask[:, 1:], -100)
    assert torch.equal(standard, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100))


@pytest.mark.parametrize("form", ["standard", "kl"])
def test_captions_of_some_clips_alone(form: Any) -> None:
    loss = cross_entropy.CaptionLoss(cross_entropy.Config(form=form, label_smoothing=0.1))
    clips = captioned()
    logits = captioner()(clips)
    every = torch.ones(len(clips), dtype=torch.bool)
    torch.testing.assert_close(loss(logits, clips, every), loss(logits, clips))
    assert loss(logits, clips, ~every) == 0
    first = torch.arange(len(clips)) == 0
    counts = [cross_entropy.token_count(clips, which) for which in (first, ~first, every)]
    parts = [loss(logits, clips, which) for which in (first, ~first)]
    assert counts[0] == 4 + 5  # the first clip has two captions, of 5 and 6 tokens
    torch.testing.assert_close((counts[0] * parts[0] + counts[1] * parts[1]) / counts[2], loss(logits, clips))
    assert abs(parts[0] - parts[1]) > 1e-3


# -- modality-balanced pre-training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", STORED["mbp_series"]["cases"], ids=lambda c: f"{c['alpha']}-{c['beta']}-{c['w_initial'][0]}"
)
def test_mbp_weights_are_those_of_the_series(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = only_objective(learner("modality_balanced", alpha=case["alpha"], beta=case["beta"])).double().train()
    objective.weights.copy_(torch.tensor(case["w_initial"]))
    for expected in case["steps"]:
        joint, audio, video = (torch.tensor(expected[key], dtype=torch.float64) for key in ("L", "L_a", "L_v"))
        alone = {kind: loss.requires_grad_() for kind, loss in (("audio", audio), ("video", video))}
        clips = torch.tensor([True])
        monkeypatch.setattr(
            modality_balanced,
            "losses_alone",
            lambda *_, alone=alone, joint=joint, clips=clips: {
                kind: Alone(loss=loss, by_target=loss.detach()[None], joint=joint[None], clips=clips)
                for kind, loss in alone.items()
            },
        )
        found = objective(None)
        assert list(found.losses) == ["audio", "video"]
        for kind, key in (("audio", "w_a"), ("video", "w_v")):
            assert found.weights[kind].item() == pytest.approx(expected[key], abs=1e-12)
        total = joint + sum(found.weights[kind] * loss for kind, loss in found.losses.items())
        assert total.item() == pytest.approx(expected["L_pretrain"], abs=1e-12)
        gradients = torch.autograd.grad(total, [audio, video])
        assert [gradient.item() for gradient in gradients] == pytest.approx(expected["grad_wrt_L_La_Lv"][1:], abs=1e-12)


def test_a_modality_alone_is_the_clip_without_the_others() -> None:
    learns = learner("modality_balanced").eval()
    clips = captioned({"see": (4, 3), "hear": (5, 2)})
    _, parts = learns(clips)
    for name, kind in (("see", "video"), ("hear", "audio")):
        other = {"see": "hear", "hear": "see"}[name]
        without = captioned({"see": (4, 3), "hear": (5, 2), other: (0, 0)})
        expected = learns.caption_loss(learns.captioner(without), without)
        torch.testing.assert_close(parts[f"modality_balanced.{kind}"], expected)
    joint = learns.caption_loss(learns.captioner(clips), clips)
    assert min(abs(parts[f"modality_balanced.{kind}"] - joint) for kind in ("audio", "video")) > 1e-4


def test_only_leaves_nothing_of_the_others() -> None:
    clips = captioned()
    seen = only(clips, ("see",))
    assert torch.equal(seen.features["see"], clips.features["see"])
    assert not seen.mask["hear"].any()
    assert not seen.present["hear"].any()
    assert seen.features["hear"].abs().sum() == 0
    assert clips.mask["hear"].any()  # the batch itself is as it was


def test_clips_without_a_modality_do_not_count_for_it() -> None:
    learns = learner("modality_balanced").eval()
    _, parts = learns(captioned({"see": (4, 3), "hear": (5, 0)}))
    alone = captioned({"see": (0, 0), "hear": (5, 0)})
    first = torch.tensor([True, False])
    expected = learns.caption_loss(learns.captioner(alone), alone, first)
    torch.testing.assert_close(parts["modality_balanced.audio"], expected)
    assert abs(learns.caption_loss(learns.captioner(alone), alone) - expected) > 1e-3  # the twin


def test_weights_stay_where_a_modality_is_in_no_clip() -> None:
    learns = learner("modality_balanced", beta=0.5).train()
    _, parts = learns(captioned({"see": (4, 3), "hear": (0, 0)}))
    assert parts["modality_balanced.audio"] == 0
    assert only_objective(learns).weights.tolist() == [0.5, 0.5]
    learns(captioned({"see": (4, 3), "hear": (5, 2)}))
    moved = only_objective(learns).weights
    assert moved.sum().item() == pytest.approx(1)
    assert moved.tolist() != [0.5, 0.5]
    learns.eval()(captioned())
    assert only_objective(learns).weights.tolist() == moved.tolist()  # in eval mode nothing moves


# -- gradient blending -------------------------------------------------------------------------------------------------

BRANCHES = ("joint", "audio", "video")


@pytest.mark.parametrize(
    ("since", "rows"),
    [("former", "online_prev_to_next"), ("former", "online_clipped"), ("start", "offline_from_start")],
)
def test_blended_weights_are_those_of_the_series(since: Any, rows: str) -> None:
    objective = only_objective(learner("g_blend", since=since)).double()
    losses = STORED["gblend_series"]["losses"]
    for checkpoint in range(6):
        now = [[losses[split][k][checkpoint] for k in BRANCHES] for split in ("train", "val")]
        objective.weigh(torch.tensor(now, dtype=torch.float64))
        if checkpoint == 0:
            assert objective.weights.tolist() == pytest.approx([1 / 3] * 3)
            continue
        expected = STORED["gblend_series"][rows][checkpoint - 1]["weights"]
        assert objective.weights.tolist() == pytest.approx([expected[k] for k in BRANCHES], rel=1e-9)


def test_blend_rewards_neither_loss_nor_a_still_gap() -> None:
    former = torch.tensor([[5.0, 5.0], [5.0, 5.0]]).double()
    worse = torch.tensor([[4.0, 4.0], [4.5, 5.5]]).double()
    blended = g_blend.blend(former, worse)
    assert blended is not None
    assert blended.tolist() == [1, 0]
    assert g_blend.blend(former, former + 1) is None  # nobody gains: the weights stay
    still = torch.tensor([[4.0, 4.5], [4.0, 4.6]]).double()
    blended = g_blend.blend(former, still)
    assert blended is not None
    assert blended.isfinite().all()
    assert blended[0].item() == pytest.approx(1 / 1e-8 / (1 / 1e-8 + 0.4 / 0.1**2))


def test_branches_are_measured_in_tokens() -> None:
    learns = learner("g_blend", every=2).eval()
    asked = []
    whole = {"see": (4, 3), "hear": (5, 2)}
    batches = {"train": [captioned(whole), captioned(whole, seed=1)], "held_out": [captioned(whole, seed=2)]}

    def measured(split: str, most: int) -> Iterator[Batch]:
        asked.append((split, most))
        yield from batches[split]

    learns.after_epoch(1, measured)
    assert not asked  # every second epoch
    learns.after_epoch(2, measured)
    assert asked == [("train", 512), ("held_out", 512)]
    measured_losses = only_objective(learns).measured
    means = [learns.caption_loss(learns.captioner(clips), clips) for clips in batches["train"]]
    torch.testing.assert_close(measured_losses[0, 0], torch.stack(means).mean())  # both have as many tokens
    hearing = captioned({"see": (0, 0), "hear": (5, 2)}, seed=2)
    torch.testing.assert_close(measured_losses[1, 1], learns.caption_loss(learns.captioner(hearing), hearing))


# -- the temperature ---------------------------------------------------------------------------------------------------


def test_the_temperature_is_learned_and_clamped() -> None:
    learns = learner("contrastive", temperature=0.2)
    objective = only_objective(learns)
    total, parts = learns(captioned())
    assert parts["contrastive.temperature"].item() == pytest.approx(0.2)
    total.backward()
    assert objective.log_scale.grad.abs() > 0
    for value, kept in ((-1.0, 1.0), (9.0, 0.01)):
        with torch.no_grad():
            objective.log_scale.fill_(value)
        learns.after_update()
        assert math.exp(-objective.log_scale.item()) == pytest.approx(kept, rel=1e-4)


def test_pairs_alone_are_matched() -> None:
    """Of the toy clips the first and the last have both; what the others hold changes nothing."""
    learns = learner("contrastive").eval()
    before, _ = learns(captioned())
    clips = captioned()
    pairs = torch.tensor([0, 4])
    fused = learns.captioner.fusion(clips)
    video, audio = (fused.aux[f"pooled_{kind}"][pairs] for kind in ("video", "audio"))
    torch.testing.assert_close(before, info_nce(video, audio, only_objective(learns).log_scale))


# -- the goldens themselves --------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_what_is_stored_here_is_what_was_given(shared: Path) -> None:
    heads, avcap = shared / "golden_heads" / "public" / "mbp", shared / "golden" / "public" / "avcap"
    if not heads.is_dir() or not avcap.is_dir():
        pytest.skip("no goldens in ../shared")
    for name in ("mbp_series", "gblend_series"):
        given = json.loads((heads / f"{name}.json").read_text())
        assert STORED[name] == {key: given[key] for key in STORED[name]}
    io = load_file(avcap / "avcap_decoder.io.safetensors")
    for key, value in STORED["label_smoothing"].items():
        assert torch.equal(torch.tensor(value, dtype=io[key].dtype), io[key]), key
