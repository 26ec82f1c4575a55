"""The local stack: real servers and workers as child processes, with nothing installed by hand."""
