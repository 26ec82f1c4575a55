"""What every process needs: logs, limits, shutdown, forks. Knows no job."""
