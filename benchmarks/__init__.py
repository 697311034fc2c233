"""Ours against the libraries people use, both in one run, as a ratio of seconds (theirs / ours; above 1 we are faster).

    make bench                                  every file of this folder
    python -m benchmarks convnext dagnn         only these papers

One file per paper, named like its module, with ``rows()`` yielding :class:`benchmarks.compare.Row`.
"""
