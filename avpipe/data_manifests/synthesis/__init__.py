"""The synthetic dataset's parts: facts are drawn, put into words, drawn as pictures and played as sound.

``facts`` draws what happens in a clip from a seed; ``language`` says it in English; ``pictures`` and ``sounds`` make
frames and samples of it; ``render`` writes them to media files; ``oracles`` writes down what the best possible
captioner with one sense could say.
"""
