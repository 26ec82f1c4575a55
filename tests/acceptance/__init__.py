"""What an operator sees: real commands, real workers, a real database, from the first row to the report."""
