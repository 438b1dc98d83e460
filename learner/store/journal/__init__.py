"""Write-ahead journal: records, their frames, the writer, the tail, steps to do again."""
