"""The parts of `fusion-jax evaluate-boxes`: reading boxes, measuring, writing the report."""

__all__: list[str] = []
