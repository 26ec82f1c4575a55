"""The image and the Compose file, built and run for real by a Docker engine: the operator's whole story, and
throughput.
"""
