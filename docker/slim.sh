#!/bin/sh
# Removes files from a virtual environment that are not needed at run time: headers, static libraries, the compiler
# library for custom operations, the server of TensorBoard, tests of packages, and symbols of libraries.
set -eu

site=$(echo "$1"/lib/python3*/site-packages)
rm -rf "$site"/tensorflow/include "$1"/include "$site"/clang/native "$site"/tensorboard_data_server
find "$site" -type d \( -name tests -o -name test \) \
    -not -path '*/tensorflow/*' -not -path '*/keras/*' -prune -exec rm -rf {} +
find "$site" -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyx' -o -name '*.pxd' \) -delete
# Most of the symbols are TensorFlow's. Libraries that auditwheel has repaired do not load after strip, so only these
# packages are stripped.
for package in tensorflow contourpy cryptography fontTools grpc kiwisolver pydantic_core; do
    find "$site/$package" -type f \( -name '*.so' -o -name '*.so.*' \) -exec strip --strip-unneeded {} +
done
