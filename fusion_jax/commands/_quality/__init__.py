"""The parts of `fusion-jax quality`: reading features, measuring them, writing the report."""

__all__: list[str] = []
