"""Importable diagnostics, closed-form theory and plots for self-supervised features."""
