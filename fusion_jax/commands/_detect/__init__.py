"""Parts of `fusion-jax detect`."""
