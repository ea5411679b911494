"""Stage three: captions in, scores out.

::

    from avpipe.eval import score

    report = score({"clip1": "a dog barks"}, {"clip1": ["a dog is barking", "barking dog"]})
    report.scores["CIDEr"], report.signature("CIDEr")
"""

from avpipe.eval.scores import ScoreReport
from avpipe.eval.scoring import DEFAULT, Scorer, ValidationScorer, score

__all__ = ["DEFAULT", "ScoreReport", "Scorer", "ValidationScorer", "score"]
