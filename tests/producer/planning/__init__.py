"""Datasets that people ask about, and that travel."""
