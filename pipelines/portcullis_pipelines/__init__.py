"""The reference pipeline: from raw data to a served model, one signed step after another."""
