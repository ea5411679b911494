"""What it saves to keep the keys and values of the audio-visual tokens while a caption is decoded.

    python benchmarks/decoding.py

GIT's text decoder attends to itself over [audio-visual tokens; words]. The tokens never see a word, so what they are in
every layer is the same for every word of a caption and for all its beams. Against each other, by the same beam search
and with the same captions in the end:

- ``kept``: what avpipe does: the tokens once a clip, then one word a step;
- ``words kept, tokens again for each beam``: the tokens once for every beam, as a search does that knows no clips;
- ``everything again``: tokens and words anew in every step, for each beam, as AVCap's authors do.

Random weights; one clip after the other; no caption ends early. The ways take turns, times are CPU time of this
process, which has one thread; medians of several.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from avpipe.train.batch import Fused
from avpipe.train.decoders import git
from avpipe.train.generate import Hypothesis, beam_search
from avpipe.train.tokenizer import Special

SPECIAL = Special(pad=0, begin=101, end=102)  # BERT's
VOCABULARY = 30522


@dataclass(frozen=True)
class Said:
    """All that a decoder remembers that keeps nothing: the words so far, and what they are about."""

    fused: Fused
    tokens: Tensor

    def reorder(self, rows: Tensor) -> Said:
        return Said(self.fused, self.tokens[rows])


class EverythingAgain:
    """The same decoder, which keeps nothing."""

    def __init__(self, decoder: git.Decoder) -> None:
        self.decoder, self.max_tokens = decoder, decoder.max_tokens

    def __call__(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        logits: Tensor = self.decoder(fused, tokens, token_mask)
        return logits

    def start(self, fused: Fused) -> Said:
        return Said(fused, torch.empty(len(fused.data), 0, dtype=torch.int64))

    def step(self, tokens: Tensor, state: Said) -> tuple[Tensor, Said]:
        said = torch.cat([state.tokens, tokens[:, None]], dim=1)
        logits = self.decoder(state.fused, said, torch.ones_like(said, dtype=torch.bool))
        return logits[:, -1], Said(state.fused, said)


class EachBeamForItself(EverythingAgain):
    """The same decoder, which does not see that beams are of one clip."""

    def start(self, fused: Fused) -> Any:
        states = [self.decoder.start(fused.take(torch.tensor([row]))) for row in range(len(fused.data))]
        layers = range(len(states[0].seen))
        return git.State(
            seen=[
                (
                    torch.cat([state.seen[layer][0] for state in states]),
                    torch.cat([state.seen[layer][1] for state in states]),
                )
                for layer in layers
            ],
            bias=torch.cat([state.bias for state in states]),
            beams=1,
            past=[
                (
                    torch.cat([state.past[layer][0] for state in states]),
                    torch.cat([state.past[layer][1] for state in states]),
                )
                for layer in layers
            ],
        )

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.decoder.step(tokens, state)


def some_tokens(count: int, width: int) -> Fused:
    """Of one clip."""
    return Fused(
        data=torch.randn(1, count, width),
        mask=torch.ones(1, count, dtype=torch.bool),
        pts_seconds=torch.zeros(1, count),
        sources=("both",),
        source=torch.zeros(count, dtype=torch.int64),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=700, help="audio-visual tokens (default: 700)")
    parser.add_argument("--steps", type=int, default=20, help="words of a caption (default: 20)")
    parser.add_argument("--beams", type=int, default=3, help="(default: 3)")
    parser.add_argument("--width", type=int, default=768, help="of the decoder (default: 768, GIT's)")
    parser.add_argument("--layers", type=int, default=6, help="of the decoder (default: 6, GIT's)")
    parser.add_argument("--repeats", type=int, default=5, help="medians of how many (default: 5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    heads = max(1, arguments.width // 64)
    sizes = {"width": arguments.width, "layers": arguments.layers, "heads": heads, "feed_forward": 4 * arguments.width}
    decoder = git.Decoder(git.Config(**sizes), fused_width=arguments.width, vocabulary_size=VOCABULARY).eval()
    with torch.no_grad():
        decoder.out_bias.normal_()
        decoder.out_bias[SPECIAL.end] = -1e4  # nothing ends early
    fused = some_tokens(arguments.positions, arguments.width)

    def captions(way: Any) -> Callable[[], list[list[Hypothesis]]]:
        return lambda: beam_search(way, fused, SPECIAL, beams=arguments.beams, max_tokens=arguments.steps)

    ways = {
        "kept": captions(decoder),
        "words kept, tokens again for each beam": captions(EachBeamForItself(decoder)),
        "everything again": captions(EverythingAgain(decoder)),
    }
    found = {name: [[h.tokens for h in clip] for clip in way()] for name, way in ways.items()}  # and a warm-up
    if any(tokens != found["kept"] for tokens in found.values()):
        raise SystemExit(f"the ways do not give the same captions: {found}")
    if {len(tokens) for clip in found["kept"] for tokens in clip} != {arguments.steps}:
        raise SystemExit("a caption ended early")

    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, {vars(arguments)}")
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(arguments.repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            ways[name]()
            times[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        ratios = [mine / own for mine, own in zip(times[name], times["kept"], strict=True)]
        ratio = seconds / medians["kept"]
        print(f"{name:40}{seconds:9.2f} s {ratio:7.1f} ({min(ratios):.1f} to {max(ratios):.1f}) times kept")


if __name__ == "__main__":
    main()
