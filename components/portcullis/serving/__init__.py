"""The model server: the Open Inference Protocol v2 over REST, authenticated, bounded, and without torch of its own."""
