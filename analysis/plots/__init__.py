"""Plots of what the diagnostics return, `plot_<quantity>(data, ax=None) -> ax`: no computation and no saving."""
