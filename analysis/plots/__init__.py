"""Plots of what the diagnostics return: `plot_<quantity>(data, ax=None) -> ax`, and `plot_page(page) -> figure`.

Nothing is computed here, and nothing saved.
"""
