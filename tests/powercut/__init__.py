"""Cutting the power at every commit that matters, and looking whether the rows of that moment can be read."""
