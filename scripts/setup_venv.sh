#!/usr/bin/env bash
# Sourced by the other scripts, for `setup_venv` and `setup_test_venv`: the project's .venv, made from
# the lock files, once.
#
# In: the project's folder, and TRAINER_VARIANT (cpu, gpu or tpu), which by default is gpu where
# an NVIDIA driver answers and else cpu. Out: ROOT, the project's folder, and VENV, complete.
# Exits 2 with a message where it can't work, and 1 where an installation fails.
#
# What is complete is written into .venv step by step, and `incomplete` lies in it while a step
# runs: a set-up that was cut off at any point is started over by the next call.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv

# setup_venv: make .venv complete for a run.
setup_venv() {
    local variant
    variant=$(choose_variant)
    complete_venv "$variant"
}

# setup_test_venv: the same, with the tools of the tests as well.
setup_test_venv() {
    local variant
    variant=$(choose_variant)
    complete_venv "$variant" test
}

# complete_venv LOCK...: do what is left to do, one caller at a time.
complete_venv() {
    is_complete "$@" && return
    [[ -w $ROOT ]] || fail 2 "Can't make .venv, the project's folder is not writable. Received: $ROOT"
    exec 9>>"$ROOT/.venv.lock"
    flock --nonblock 9 || { tell "waiting for another set-up of this folder"; flock 9; }
    trap 'echo >&2; fail 130 "Set-up was interrupted; the next call starts it over"' INT
    # The other one may have done it all.
    is_complete "$@" || make_complete "$@"
    trap - INT
    exec 9>&-
}

choose_variant() {
    local variant=${TRAINER_VARIANT:-}
    if [[ -z $variant ]]; then
        variant=cpu
        if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then variant=gpu; fi
    fi
    [[ -f $ROOT/requirements-$variant.lock && $variant != test ]] ||
        fail 2 "TRAINER_VARIANT must be cpu, gpu or tpu. Received: $variant"
    echo "$variant"
}

# is_complete LOCK...: whether nothing is left to do.
is_complete() {
    local step
    [[ ! -e $VENV/incomplete ]] || return
    for step in "$@" project; do
        is_done "$step" || return
    done
}

is_done() {
    [[ -f $VENV/done-$1 && $(<"$VENV/done-$1") == "$(state_of "$1")" ]]
}

# state_of STEP: all that the step's result depends on. Scripts in a venv name its place, and
# its packages lie in a folder named after Python's version.
state_of() {
    case $1 in
    project) (cd -- "$ROOT" && sha256sum setup.py pyproject.toml) ;;
    *)
        echo "$VENV" "$("$VENV/bin/python" -ISc 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>&1)"
        (cd -- "$ROOT" && sha256sum "requirements-$1.lock")
        ;;
    esac
}

# make_complete VARIANT [test]: do what is not done; all of it if the variant itself is not.
make_complete() {
    local variant=$1 started=$SECONDS
    if [[ -e $VENV/incomplete ]] || ! is_done "$variant"; then make_empty_venv "$variant"; fi
    touch "$VENV/incomplete"
    local lock
    for lock in "$@"; do
        is_done "$lock" || install_lock "$lock"
    done
    is_done project || install_project
    rm -- "$VENV/incomplete"
    tell "done in $((SECONDS - started)) s"
}

make_empty_venv() {
    if [[ -e $VENV && ! -e $VENV/incomplete ]] && ! compgen -G "$VENV/done-*" >/dev/null; then
        fail 2 "There is a .venv that this script did not make; move it away first. Received: $VENV"
    fi
    local python
    python=$(find_python)
    tell "making .venv from requirements-$1.lock, $("$python" --version), once"
    rm -rf -- "$VENV"
    mkdir -- "$VENV"
    touch "$VENV/incomplete"
    logged "a virtual environment" "$python" -m venv "$VENV"
}

# find_python: print the first Python that fits and can make virtual environments.
find_python() {
    local name version found=""
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        [[ $version =~ ^3\.1[0-3]$ ]] || { found+=" $name is $version;" && continue; }
        if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
        found+=" $name ($version) lacks venv or ensurepip: apt-get install python$version-venv, on Debian or Ubuntu;"
    done
    fail 2 "No Python 3.10 to 3.13 that can make virtual environments. Received:${found:- no python3}"
}

install_lock() {
    # Wheels only: whatever a source archive would need to be built is in no lock.
    logged "requirements-$1.lock" "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input \
        --require-hashes --only-binary :all: --requirement "$ROOT/requirements-$1.lock"
    mark_done "$1"
}

install_project() {
    logged "the project" "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input \
        --no-index --no-deps --no-build-isolation --editable "$ROOT"
    mark_done project
}

mark_done() {
    state_of "$1" >"$VENV/done-$1"
}

# logged WHAT COMMAND...: run it with its output in the log, the end of which is shown if it fails.
logged() {
    local what=$1 log=$VENV/install.log
    shift
    if ! "$@" </dev/null 2>&1 | tee -a "$log" | show_progress; then
        tail -n 15 "$log" >&2
        fail 1 "Installing $what failed; above is the end of $log, run the same command again to retry"
    fi
}

# show_progress: on a terminal, one line that tells how long it has been and what pip is at.
show_progress() {
    local line doing=""
    while true; do
        if IFS= read -r -t 1 line; then
            case $line in
            Collecting*) doing=${line#Collecting } doing=${doing%% (from*} ;;
            Installing\ collected*) doing="unpacking it all" ;;
            esac
        elif (($? <= 128)); then
            break # the end; above 128 it is only a second without a line
        fi
        [[ ! -t 2 ]] || printf '\r\033[Kset-up    %d s  %.50s' "$SECONDS" "$doing" >&2
    done
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

tell() {
    echo "set-up    $*" >&2
}

fail() {
    local code=$1
    shift
    echo "Error: $*" >&2
    exit "$code"
}
