"""What the data is: names, dtypes, shapes, units and versions. Imports nothing of ours."""
