"""Moving the application's rows to a dataset and back, each in one transaction. Reads no recording."""
