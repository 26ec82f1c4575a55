"""The whole workflow on made-up projects and a local stack."""
