"""Networks that more than one stage runs: one runs the layers below a cut and stores what they say, another trains
those above it.
"""
