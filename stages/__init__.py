"""The networks: pure modules without files or devices. Imports `data_specs` only."""
