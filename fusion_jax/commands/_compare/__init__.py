"""Parts of `fusion-jax compare`."""
