"""What a worker does with a job, from lease to outcome. Knows no Celery."""
