"""For each encoder that is large or wants weights: ``settings(folder)`` make it small and free of downloads."""
