"""The command line: ``offprint VERB``, one small file per verb."""
