"""What people ask about stored datasets and projects: values and their JSON. Changes nothing."""
