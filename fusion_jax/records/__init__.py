"""What a run leaves behind: files that are whole or absent, and the record of what produced them."""

from fusion_jax.records.files import (
    atomic_path,
    read_json_lines,
    run_record,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)

__all__ = ["atomic_path", "read_json_lines", "run_record", "write_bytes", "write_csv", "write_json", "write_text"]
