"""Bytes on disk by digest, on a real file system."""
