"""What lies in `deploy/`: alerts, the dashboard and units, tried with the programs that read them."""
