"""PTB tokenisation: in Python where that is known to give what the jar gives, by the jar that defines it where not.

Source: Manning et al., "The Stanford CoreNLP Natural Language Processing Toolkit", ACL 2014; the jar (3.4.1) and the
list of dropped punctuation are pycocoevalcap's (``tokenizer/ptbtokenizer.py``), whose wrapper writes its input into the
installed package and pairs lines with captions without counting them. Ours does neither.

What is known is told in :mod:`avpipe.pipeline.ptb`: of 101,436 captions of nine datasets, all but 468. Only those
start Java, which takes as long as some ten thousand captions.

The jar looks past the end of a line: whether a caption that ends in an initial or in "No." keeps its full stop may
depend on how the *next* caption begins. So what is sent is sent in one run, in the order given, each caption with the
next ones up to one that has text: it is read as in pycocoevalcap, which sends all.

Brackets stay in the text, as ``-lrb-`` and ``-rrb-``: the list of dropped punctuation has them in capitals. Emoji and
whatever else the tokeniser cannot read vanish. That is how the published numbers came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avpipe.eval.java import JavaChild, JavaError, twice
from avpipe.eval.tools import Tools, pycocoevalcap_file
from avpipe.pipeline.errors import ScoringError
from avpipe.pipeline.ptb import tokenise as tokenise_ordinary

NAME = "ptb3.4.1"


def tokenise(captions: Sequence[str], tools: Tools) -> list[str]:
    """Each caption as lower-case tokens with single spaces between them, punctuation dropped.

    Args:
        captions: cleaned (:func:`avpipe.eval.coverage.clean`): nothing in them ends a line.
        tools: for Java, where a caption needs it.

    Raises:
        JavaError: a caption needs the jar, and there is no Java, or it failed twice.
        ScoringError: lines out are not lines in; both numbers are given.
    """
    return tokenise_several([captions], tools)[0]


def tokenise_several(corpora: Sequence[Sequence[str]], tools: Tools) -> list[list[str]]:
    """:func:`tokenise` of several corpora, as if each were read by itself, with one start of Java."""
    read = [tokenise_ordinary(captions) for captions in corpora]
    others = [[place for place, enough in enumerate(ordinary) if not enough] for _, ordinary in read]
    sent = [_sent(captions, places) for captions, places in zip(corpora, others, strict=True)]
    # Where the jar looks past the last text of a corpus it must see the end of the input, and no other corpus.
    apart = any(
        places and not any(caption.strip() for caption in captions[places[-1] + 1 :])
        for captions, places in zip(corpora, others, strict=True)
    )
    lines = [[captions[place] for place in places] for captions, places in zip(corpora, sent, strict=True)]
    try:
        if apart:
            answers = iter([line for several in lines for line in tokenise_by_jar(several, tools)])
        else:
            answers = iter(tokenise_by_jar([line for several in lines for line in several], tools))
    except JavaError as error:
        odd = [captions[place] for captions, places in zip(corpora, others, strict=True) for place in places]
        count = sum(map(len, corpora))
        raise JavaError(f"{len(odd)} of {count} captions need its jar, as {odd[0]!r:.80} does: {error}") from None
    for (words, _), places, needed in zip(read, sent, others, strict=True):
        by_jar = {place: next(answers) for place in places}
        for place in needed:
            words[place] = by_jar[place]
    return [words for words, _ in read]


def _sent(captions: Sequence[str], needed: Sequence[int]) -> list[int]:
    """Places of the captions that the jar is given so that it reads those that need it as among all."""
    sent: set[int] = set()
    for place in needed:
        after = place + 1
        while after < len(captions) and not captions[after].strip():
            after += 1
        sent.update(range(place, min(after + 1, len(captions))))
    return sorted(sent)


def tokenise_by_jar(captions: Sequence[str], tools: Tools) -> list[str]:
    """:func:`tokenise`, all of it by the jar.

    Raises:
        JavaError: there is no Java, or it failed twice.
        ScoringError: lines out are not lines in; both numbers are given.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    if not captions:
        return []
    jar = pycocoevalcap_file("tokenizer", "stanford-corenlp-3.4.1.jar")
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]

    def run() -> list[str]:
        with JavaChild(
            tools.java.path, arguments, name="PTB tokeniser", patience_seconds=tools.patience_seconds
        ) as child:
            return child.finish(captions, most_answers=2 * len(captions))

    lines = twice(run)
    if len(lines) != len(captions):
        raise ScoringError(
            f"PTB tokeniser: {len(captions)} captions in, {len(lines)} lines out; no caption can be told from another"
        )
    dropped = frozenset(PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in lines]


def tokenise_by_clip(captions: Mapping[str, Sequence[str]], tools: Tools) -> dict[str, list[str]]:
    """:func:`tokenise` for several captions a clip, in one run."""
    return by_clip(captions, tokenise(in_a_row(captions), tools))


def in_a_row(captions: Mapping[str, Sequence[str]]) -> list[str]:
    """All captions, clip after clip."""
    return [caption for several in captions.values() for caption in several]


def by_clip(captions: Mapping[str, Sequence[str]], words: Sequence[str]) -> dict[str, list[str]]:
    """Words of captions that stood :func:`in_a_row`, by clip again."""
    tokens = iter(words)
    return {clip_id: [next(tokens) for _ in several] for clip_id, several in captions.items()}
