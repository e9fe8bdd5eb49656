"""Sign a sealed model as the OpenSSF model signature has it, so that others' tools can verify it too."""
