"""Server and load generator of the overload benchmark, each a process of its own."""
