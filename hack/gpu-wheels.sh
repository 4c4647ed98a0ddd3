#!/usr/bin/env bash
# Downloads into .wheels what `make gpu-check` needs beside PyTorch and what PyTorch brings, of the versions of
# requirements/trainer.txt. docs/development.md says how they are used.
set -euo pipefail
pip=$1
python=${PYTHON_VERSION:-3.12}
cd "$(dirname "$0")/.."
names='trl|transformers|accelerate|peft|datasets|dill|multiprocess|bitsandbytes'
names+='|huggingface-hub|httpx2|httpcore2|truststore'
names+='|jsonschema|jsonschema-specifications|referencing|rpds-py'
names+='|pydantic|pydantic-core|annotated-types|typing-inspection'
mapfile -t pins < <(grep -oE "^($names)==[^ ]+" requirements/trainer.txt)
platforms=()
for platform in manylinux_2_{28,27,24,17}_x86_64 manylinux2014_x86_64; do platforms+=(--platform "$platform"); done
rm -rf .wheels
"$pip" download -q --no-deps --only-binary=:all: --implementation cp --python-version "$python" "${platforms[@]}" \
  -d .wheels "${pins[@]}"
du -sh .wheels
