"""Diagnostics inside anybody's training: a forward hook, a torchmetrics metric, a Lightning callback."""
