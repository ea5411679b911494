"""Stage one: videos in, feature shards out."""
