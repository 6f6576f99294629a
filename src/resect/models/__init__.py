"""Models: loading, chat rendering, residual writers."""
