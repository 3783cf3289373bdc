"""Diagnostics inside anybody's training."""
