"""The store against a hostile machine: killed at any call, refused any call, a disk that fills, files that
change meanwhile.
"""
