"""A room of models from outside, for the tests."""
