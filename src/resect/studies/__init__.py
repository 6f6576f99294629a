"""Studies: arms times measurements, resumable."""
