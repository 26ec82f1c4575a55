"""Random histories of all verbs over one small store, by real jobs, looked at byte for byte at their ends."""
