"""Projects without their data: one as a file, and back."""
