"""Whole runs by real processes while things die, stop, forget and come back, at moments that a seed
decides.
"""
