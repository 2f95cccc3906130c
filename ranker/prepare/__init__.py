"""Raw data sets -> JSON lines of queries: `python -m ranker.prepare NAME ...`, with a file here per data set."""
