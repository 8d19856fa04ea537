#!/usr/bin/env bash
# Functions `setup_venv` and `setup_test_venv`, for the other scripts to source: they create .venv from the lock files.
#
# Input: TRAINER_VARIANT (cpu, gpu or tpu); the default is gpu if an NVIDIA driver lists a GPU, otherwise cpu.
# Output: ROOT, the folder of the project, and VENV, the complete environment.
# Exits with 2 and a message if the setup is impossible, and with 1 if an installation fails.
#
# Each finished step is recorded in .venv, and the file `incomplete` exists while a step runs, so that the next call
# starts an interrupted setup over.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv

# setup_venv: complete .venv for a run.
setup_venv() {
    local variant
    variant=$(choose_variant)
    complete_venv "$variant"
}

# setup_test_venv: complete .venv for the tests.
setup_test_venv() {
    local variant
    variant=$(choose_variant)
    complete_venv "$variant" test
}

# complete_venv LOCK...: run the missing steps; one caller at a time.
complete_venv() {
    is_complete "$@" && return
    [[ -w $ROOT ]] || fail 2 "Cannot create .venv: the folder of the project is not writable. Received: $ROOT"
    exec 9>>"$ROOT/.venv.lock"
    flock --nonblock 9 || { report "waiting for another set-up of this folder"; flock 9; }
    trap 'echo >&2; fail 130 "The set-up was interrupted. The next call starts it over."' INT
    # The other caller may have completed it.
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

# is_complete LOCK...: whether all steps are done.
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

# state_of STEP: print everything that the result of the step depends on. Scripts in a virtual environment contain its
# path, and its packages are in a folder named after the Python version.
state_of() {
    case $1 in
    project) (cd -- "$ROOT" && sha256sum setup.py pyproject.toml) ;;
    *)
        echo "$VENV" "$("$VENV/bin/python" -ISc 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>&1)"
        (cd -- "$ROOT" && sha256sum "requirements-$1.lock")
        ;;
    esac
}

# make_complete VARIANT [test]: run the missing steps; all of them if the variant is not installed.
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
    report "done in $((SECONDS - started)) s"
}

make_empty_venv() {
    if [[ -e $VENV && ! -e $VENV/incomplete ]] && ! compgen -G "$VENV/done-*" >/dev/null; then
        fail 2 "There is a .venv that this script did not create. Move or delete it. Received: $VENV"
    fi
    local python
    python=$(find_python)
    report "creating .venv from requirements-$1.lock, $("$python" --version), once"
    rm -rf -- "$VENV"
    mkdir -- "$VENV"
    touch "$VENV/incomplete"
    logged "a virtual environment" "$python" -m venv "$VENV"
}

# find_python: print the first supported Python that can create virtual environments.
find_python() {
    local name version rejected=""
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        [[ $version =~ ^3\.1[0-3]$ ]] || { rejected+=" $name is $version;" && continue; }
        if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
        rejected+=" $name ($version) lacks venv or ensurepip: apt-get install python$version-venv, on Debian or Ubuntu;"
    done
    fail 2 "There is no Python 3.10 to 3.13 that can create virtual environments. Received:${rejected:- no python3}"
}

install_lock() {
    # Only wheels: the locks do not contain the build requirements of source archives.
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

# logged NAME COMMAND...: run the command with its output in the log; print the end of the log if it fails.
logged() {
    local name=$1 log=$VENV/install.log
    shift
    if ! "$@" </dev/null 2>&1 | tee -a "$log" | show_progress; then
        tail -n 15 "$log" >&2
        fail 1 "Installing $name failed. The end of $log is above. Run the same command again to retry."
    fi
}

# show_progress: on a terminal, show the elapsed time and the package that pip installs.
show_progress() {
    local line package=""
    while true; do
        if IFS= read -r -t 1 line; then
            case $line in
            Collecting*) package=${line#Collecting } package=${package%% (from*} ;;
            Installing\ collected*) package="unpacking" ;;
            esac
        elif (($? <= 128)); then
            break # end of the input; above 128 the timeout of one second has expired
        fi
        [[ ! -t 2 ]] || printf '\r\033[Kset-up    %d s  %.50s' "$SECONDS" "$package" >&2
    done
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

report() {
    echo "set-up    $*" >&2
}

fail() {
    local code=$1
    shift
    echo "Error: $*" >&2
    exit "$code"
}
