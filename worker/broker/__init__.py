"""The connection to Redis: configuration, sending, receiving, and the filter for messages."""
