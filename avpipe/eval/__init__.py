"""Stage three: captions in, scores out.

::

    from avpipe.eval import score

    report = score({"clip1": "a dog barks"}, {"clip1": ["a dog is barking", "barking dog"]})
    report.scores["CIDEr"], report.signature("CIDEr")

    scorer = Scorer(references, metrics=["cider", "bleu"])
    compare({name: scorer.score(captions) for name, captions in systems.items()}).differences
"""

from avpipe.eval.comparison import Comparison, compare
from avpipe.eval.scores import ScoreReport
from avpipe.eval.scoring import DEFAULT, Scorer, ValidationScorer, score

__all__ = ["DEFAULT", "Comparison", "ScoreReport", "Scorer", "ValidationScorer", "compare", "score"]
