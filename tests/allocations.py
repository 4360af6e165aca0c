"""The largest piece of memory that a call asks for, counted in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Stands before glibc's allocator, which serves torch's own and C++'s as well.
SOURCE = r"""
#include <errno.h>
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static size_t most;
static void note(size_t size) {
  size_t seen = __atomic_load_n(&most, __ATOMIC_RELAXED);
  while (size > seen && !__atomic_compare_exchange_n(&most, &seen, size, 1, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {}
}
size_t largest_allocation(void) { return __atomic_exchange_n(&most, 0, __ATOMIC_RELAXED); }
void *malloc(size_t size) { note(size); return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { note(count * size); return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { note(size); return __libc_realloc(old, size); }
void *memalign(size_t align, size_t size) { note(size); return __libc_memalign(align, size); }
void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }
int posix_memalign(void **to, size_t align, size_t size) {
  *to = memalign(align, size);
  return *to ? 0 : ENOMEM;
}
"""

PROBE = """
import ctypes, json, os
import torch
import pama_ops as po
_count = ctypes.CDLL(os.environ["LD_PRELOAD"]).largest_allocation
_count.restype = ctypes.c_size_t
_found = {}
def measure(name, call):
    call()
    _count()
    kept = call()
    _found[name] = _count()
"""


@functools.cache
def allocator() -> Path:
    path = Path(tempfile.mkdtemp()) / "allocator.so"
    command = [os.environ.get("CC", "cc"), "-x", "c", "-shared", "-fPIC", "-o", str(path), "-"]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return path


def largest_allocations(script: str) -> dict[str, int]:
    """Bytes by name, of a script that calls `measure(name, call)`."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE + script + "\nprint(json.dumps(_found))"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "LD_PRELOAD": str(allocator())},
    )  # fmt: skip
    found: dict[str, int] = json.loads(run.stdout)
    return found
