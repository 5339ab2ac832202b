"""File systems without locks. Standard library only."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

# Lustre mounted without `flock`, and NFS whose lock service is down.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_told: set[Path] = set()


def tell(path: Path, error: OSError) -> None:
    """That the lock file at `path` cannot be locked, once per process."""
    if path not in _told:
        _told.add(path)
        print(f"{path}: no locks here ({error.strerror}); going on without: start no second one", file=sys.stderr)
