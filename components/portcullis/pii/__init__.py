"""Personally identifying information: finding it in tables, masking it, and measuring what is left."""
