"""Models: their description, their file format without code in it, and the architectures that weights may fill."""
