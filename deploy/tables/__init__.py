"""Files of rows that people have: Parquet, CSV and JSONL, read with the place of every value."""
