"""Which clips there are: one manifest a dataset, one module a dataset in ``datasets/``."""
