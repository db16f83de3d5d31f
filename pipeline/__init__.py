"""What runs: sources, extraction, the store, training and evaluation. Imports `stages` and `data_specs`."""
