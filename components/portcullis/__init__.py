"""Portcullis: Kubeflow Pipelines components that secure a model from raw data to serving, and fail closed."""

__version__ = "0.1.0"
