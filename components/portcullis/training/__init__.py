"""Training: adversarial by default."""
