"""The ground: types, errors, configuration, registry, shards, stores and the runner. Knows no stage."""
