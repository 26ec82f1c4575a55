"""The protocol by which jobs share a store, as a state machine of which every interleaving is tried."""
