#!/usr/bin/env bash
# Resolve the ranges of setup.cfg to the newest releases, for all supported versions of Python and all systems at once,
# and write the releases with their hashes beside this file. `make lock` runs it. The argument is the program uv.
#
#     production.txt   SRM on a server with its own PostgreSQL
#     run.txt          and the embedded PostgreSQL: make run
#     dev.txt          and the tools of the tests and of lint: make test, make lint
#     fast.txt         gunicorn's parser in C, apart: where it cannot be compiled, SRM runs without it
#     uv.txt           uv, which resolves
#
# The first three hold setuptools too, so that a locked setuptools builds SRM (pip install --no-build-isolation).
set -euo pipefail
uv=$1
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --annotation-style line --custom-compile-command "make lock" "$@"
}

python3 - >"$work/build.in" <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
PY
echo gunicorn-h1c >"$work/fast.in"
echo uv >"$work/uv.in"

# One resolution, so that the files agree: each file is a part of it.
compile --output-file "$work/all.txt" --extra fast --extra embedded --extra dev setup.cfg "$work/build.in"
compile --output-file "$work/production.txt" --constraints "$work/all.txt" setup.cfg "$work/build.in"
compile --output-file "$work/run.txt" --constraints "$work/all.txt" --extra embedded setup.cfg "$work/build.in"
compile --output-file "$work/dev.txt" --constraints "$work/all.txt" --extra embedded --extra dev setup.cfg "$work/build.in"
compile --output-file "$work/fast.txt" --constraints "$work/all.txt" --no-deps "$work/fast.in"
compile --output-file "$work/uv.txt" "$work/uv.in"
for name in production run dev fast uv; do
    sed "s:-c $work/all.txt, ::; s:, -c $work/all.txt::; s:$work/::" "$work/$name.txt" >"requirements/$name.txt"
done
