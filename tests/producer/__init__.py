"""Tests of the producer's rooms."""
