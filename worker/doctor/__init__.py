"""What a worker checks on its own machine when the doctor asks. Repairs nothing."""
