"""New versions: found, checked, swapped in or refused."""
