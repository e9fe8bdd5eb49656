"""Evidence for pipelines whose tasks are not all Portcullis's own: where a chain begins, what a foreign task made."""
