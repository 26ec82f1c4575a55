"""The operator's side of the Label dataset migrator: queue jobs, follow them, report on them."""
