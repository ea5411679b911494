"""PTB tokenisation without Java: what stage three's tokeniser makes of an ordinary caption.

Source: the PTBTokenizer of Stanford CoreNLP 3.4.1 (Manning et al., ACL 2014) with the options of pycocoevalcap 1.2
(``-preserveLines -lowerCase``) and its list of dropped punctuation, which define the published scores and run as a jar
(:mod:`avpipe.eval.ptb`). The jar takes a process and a quarter of a second a call; a reward is wanted in every step.

:func:`is_ordinary` tells the class of texts on which both are equal. How that was shown: the states of the jar's lexer
were searched for every word that it treats in a way of its own (they are listed below), and for every token that can
reach over a space; what is left was compared on all captions at hand and on random texts of the class
(tests/pipeline/test_ptb.py). Of any other text :func:`words` gives what it can, which mostly is the same.

In that class are, with spaces between them,

- words of letters or of letters and digits, several with hyphens between, with a clitic behind (``'s``, ``n't``) or an
  apostrophe; two words of letters with a slash between; ``o'clock``;
- numbers: ``12``, ``10,000``, ``3.5``, ``1:14``, ``100%``, ``$50``, ``#3``;
- quotation marks and brackets before these, and marks behind; marks alone, ``&`` and dashes among them.

Not in it is what the jar reads on for past a space: a full stop after a letter or an abbreviation ("No. 5"), and a
number after a number ("1 1/2", telephone numbers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_lowercase

_ABBREVIATED = """
adj adm adv al ala alex apr ariz ark art assn assoc asst atty attys aug ave az bancorp bhd bldg blvd brig bros ca
calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec del dept det dr drs ed elec ens esq est etc ext
feb fig figs fla fri ft ga gen gov govs hon ill inc ind insp intl invt jan jos jr jul jun kan kans ky la lieut lt ltd
maj mar mass md messrs mfg mich minn miss mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev no nos nov oct okla
op ore pa penn pfc ph plc pp ppte pptes ppty pptys pres prof profs prop pte ptes pty ptys pvt rd rep reps rev rt sen
sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn tex thu thurs treas tue tues univ va vs vt wash wed
wis wisc wm www wyo
"""

ABBREVIATIONS = frozenset(ascii_lowercase) | frozenset(_ABBREVIATED.split())
"""Words that may keep a full stop, in whatever letters: single letters, and abbreviations."""

DROPPED = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""pycocoevalcap's punctuation. Its list has brackets too, but in capitals, so that they stay as ``-lrb-``."""

_IN_TWO = {word.replace(" ", ""): word for word in ("can not", "gon na", "got ta", "lem me", "gim me", "wan na")}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_QUOTES = str.maketrans({"’": "'", "‘": "`", "“": '"', "”": '"'})

_PLAIN, _DIGITS, _OTHER, _ANOTHER = range(4)
_BETWEEN = "\n"

_LETTER = "A-Za-zÀ-ÖØ-öø-ÿ"
_CLITIC = r"'(?:s|m|d|ll|re|ve)"
_END = rf"(?![{_LETTER}0-9])"
_NUMBER = r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|[0-9]{1,2}:[0-9]{2}"

# Quotation marks that are curled stand alone; and to ignore case is to take more letters for these than there are here.
_CHARACTERS = re.compile(rf"(?!.*[“”]{{2}})[{_LETTER}0-9 .,;:!?\"'’“”()/&%$#-]*")

_ORDINARY = re.compile(
    rf"""
    ["(]*
    (?:
        (?=[0-9-]*[{_LETTER}]) (?:[{_LETTER}0-9]+-)* (?P<last>[{_LETTER}0-9]+) (?P<clitic>{_CLITIC} | (?<=s)')?
      | (?P<denied>[A-Za-z]*[A-MO-Za-mo-z]) n't
      | [A-Za-z]+ / (?P<second>[A-Za-z]+)
      | o'clock
      | \#[0-9]+ | \$?(?:{_NUMBER}) | (?:{_NUMBER})%
    )
    (?! .*(?: \.[,;:] | \.{{4}} )) (?P<marks>[.,!?")]*) [:;]? "?
    | [-,;:.!?&"()] | -- | \.\.\.
    """,
    re.VERBOSE | re.IGNORECASE,
)

_TOKEN = re.compile(
    rf"""
    [A-Za-z]+? (?=n't{_END}) | n't{_END} | {_CLITIC}{_END}
    | [dol]'(?!(?:ll|re|ve){_END})[{_LETTER}]{{2,}} | c'mon | ma'am | '(?:em|til|cause|n)'?{_END}
    | [A-Za-z0-9]+(?:-[A-Za-z]+)* (?:/[A-Za-z0-9]+(?:-[A-Za-z]+)*){{1,2}}{_END}
    | [{_LETTER}0-9]+(?:-[{_LETTER}0-9]+)+
    | [0-9]*(?:[.,:][0-9]+)+{_END}
    | [{_LETTER}0-9_]*[{_LETTER}_][{_LETTER}0-9_]*(?:[.!?][{_LETTER}][{_LETTER}0-9]*)*
    | [0-9]+ | [?!]+ | --+ | \.{{3,5}} | .
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_ordinary(text: str) -> bool:
    """Whether :func:`words` is known to give what the jar gives, whatever text stands after it."""
    return tokenise([text])[1][0]


def words(text: str) -> str:
    """A caption as lower-case tokens with single spaces between them, punctuation dropped."""
    return tokenise([text])[0][0]


def tokenise(texts: Sequence[str]) -> tuple[list[str], list[bool]]:
    """Of each text :func:`words` and :func:`is_ordinary`: of many at once, a tenth of the time."""
    if not texts:
        return [], []
    # One text is told from the next by a part of its own between them; that any other whitespace is none of the
    # ordinary characters is known before.
    parts = f" {_BETWEEN} ".join([text.replace(_BETWEEN, "\t") for text in texts]).split(" ")
    read = {part: _read(part) for part in dict.fromkeys(parts)}
    read[_BETWEEN] = (_BETWEEN, _ANOTHER)
    words_of = {part: words for part, (words, _) in read.items()}
    kind_of = {part: kind for part, (_, kind) in read.items()}
    lines = " ".join(filter(None, map(words_of.__getitem__, parts))).split(_BETWEEN)
    kinds = bytes(map(kind_of.__getitem__, filter(None, parts))).split(bytes([_ANOTHER]))
    twice = bytes([_DIGITS, _DIGITS])
    return [line.strip(" ") for line in lines], [_OTHER not in kind and twice not in kind for kind in kinds]


@lru_cache(1 << 17)
def _read(part: str) -> tuple[str, int]:
    """Of what stands between two spaces: its words, and whether it is ordinary by itself, without or with a digit.

    Captions use few words again and again, so that most are read once.
    """
    if part.isascii() and part.isalpha():  # most are one word, and the rules below leave them as they are
        word = part.lower()
        return _IN_TWO.get(word, word), _PLAIN
    straight = part.translate(_QUOTES)
    tokens = [token.lower() for piece in straight.split() for token in _TOKEN.findall(piece)]
    kept = [token for token in tokens if token not in DROPPED and not token.startswith("--")]
    words = " ".join(_IN_TWO.get(token) or _BRACKETS.get(token) or token for token in kept)
    if not _CHARACTERS.fullmatch(part) or not _is_ordinary_part(straight):
        return words, _OTHER
    return words, _DIGITS if any(letter.isdigit() for letter in straight) else _PLAIN


def _is_ordinary_part(straight: str) -> bool:
    found = _ORDINARY.fullmatch(straight)
    if not found:
        return False
    last = (found["last"] or found["second"] or found["denied"] or "").lower()
    if found["clitic"] or found["denied"]:
        # wanna's, x-o'clock: once whole, once not
        return not (last in _IN_TWO or (len(last) == 1 and "-" in straight))
    return not ((found["marks"] or "").startswith(".") and last in ABBREVIATIONS)
