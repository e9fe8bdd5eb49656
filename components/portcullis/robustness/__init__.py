"""The robustness gate's measurement: how often a model withstands FGSM, PGD, CW and DeepFool."""
