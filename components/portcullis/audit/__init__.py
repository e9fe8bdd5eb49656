"""The audit log: what each process did, chained and signed, and where it was altered."""
