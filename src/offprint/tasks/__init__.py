"""Kinds of task: loss, metrics, loops. Lightning is imported only by the files that train with it."""
