"""What strangers may try, what goes over the wire, what the database allows, and what must never be seen."""
