"""What single families need beyond the general shrinking: values for fields of their configurations, and nothing else."""

from typing import Any

CHANGES: dict[str, dict[str, Any]] = {}
