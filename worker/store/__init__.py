"""Bytes on disk by digest: hashing, manifests, the store. Knows no database and no Celery."""
