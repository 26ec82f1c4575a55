"""Every test. The folders mirror the rooms of worker and producer."""
