"""Raw data sets -> JSON lines of queries: `python -m ranker.prepare NAME ...`, one file here per data set."""
