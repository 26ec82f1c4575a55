"""The command line: options in, one call a verb, exit code out; how the program speaks to a terminal."""
