"""Reports: a run folder becomes one self-contained HTML file."""
