"""The robustness gate's measurement: how often a model withstands FGSM, PGD, APGD, CW and DeepFool."""
