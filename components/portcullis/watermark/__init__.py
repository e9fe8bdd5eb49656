"""A keyed mark in a model's weights, and the test that finds it again."""
