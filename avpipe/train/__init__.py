"""Stage two: feature shards in; fusion and decoder heads, and their captions, out."""
