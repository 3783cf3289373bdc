"""What recorded runs say: one run's diagnostics, many runs' outcomes, measures against accuracy, logs, ViT layers."""
