"""The algorithms, one a file over shared mathematics. Importing this package imports no torch."""
