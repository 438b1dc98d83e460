"""Parts of the crash benchmark: log, processes, kills, an oracle, and the judgment."""
