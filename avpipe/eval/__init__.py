"""Stage three: captions in, scores out."""
