"""What `fusion-jax evaluate` reads and writes."""
