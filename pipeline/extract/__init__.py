"""Extraction: frozen models over clips, once. Meets the training half only in `pipeline/store` and `data_specs`."""
