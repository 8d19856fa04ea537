#!/bin/sh
# Takes out of a virtual environment what no program of it needs: headers, static libraries, the compiler's
# library that only builds of new operations use, TensorBoard's server, the tests of packages, and the
# symbols of libraries.
set -eu

site=$(echo "$1"/lib/python3*/site-packages)
rm -rf "$site"/tensorflow/include "$1"/include "$site"/clang/native "$site"/tensorboard_data_server
find "$site" -type d \( -name tests -o -name test \) \
    -not -path '*/tensorflow/*' -not -path '*/keras/*' -prune -exec rm -rf {} +
find "$site" -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyx' -o -name '*.pxd' \) -delete
# TensorFlow's are nearly all of it. Those of wheels that auditwheel has repaired would no longer load, so it
# is these and no others.
for package in tensorflow contourpy cryptography fontTools grpc kiwisolver pydantic_core; do
    find "$site/$package" -type f \( -name '*.so' -o -name '*.so.*' \) -exec strip --strip-unneeded {} +
done
