"""Tests of the workers' side."""
