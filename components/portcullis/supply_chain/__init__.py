"""What comes from outside and is run or loaded: model files, packages, pipelines."""
