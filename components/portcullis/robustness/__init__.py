"""The robustness gate's measurement: how often a model withstands the attacks of a plan, and whether that holds."""
