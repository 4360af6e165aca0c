#!/bin/sh
# A compiler launcher: keeps what the compiler says in OBJECT.report, which tests/kernel_resources.py
# reads; a compiler cache replays it.
for argument; do
  if [ "$previous" = -o ]; then object=$argument; fi
  previous=$argument
done
"$@" >"$object.report" 2>&1
status=$?
cat "$object.report" >&2
exit $status
