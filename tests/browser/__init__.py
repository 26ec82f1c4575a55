"""What people see of reports and of Flower, in a real browser."""
