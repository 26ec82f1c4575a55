"""The upgrade from the first release, played with its own workers."""
