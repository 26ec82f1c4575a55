"""Benchmarks of the whole system and of its building blocks, against other tools on the same data in the same
run.
"""
