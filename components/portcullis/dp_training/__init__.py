"""Training under differential privacy (DP-SGD), and the gate that audits the trainer."""
