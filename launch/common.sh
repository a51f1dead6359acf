# Sourced by quickstart and test: finds Python, makes .venv, installs into it what has changed.
#
#   PYTHON=/path/to/python3.12    the interpreter to use, instead of the first fit one (3.10 or later) on the PATH
#
# torch: constraints.txt names the version; the build is the one that your package index serves. Where an index has
# a CPU build beside the CUDA build (as 2.13.0+cpu beside 2.13.0), pip prefers the CPU build. So on a machine with an
# NVIDIA GPU the exact name is asked for, which only the CUDA build has.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
venv_python=$venv/bin/python

say() { printf '%s: %s\n' "$(basename "$0")" "$*"; }

fail() {
    say "$*" >&2
    exit 1
}

# Prints the first interpreter that is Python 3.10 or later.
find_python() {
    local candidates=(python3.11 python3 python3.13 python3.12 python3.10) candidate
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or later (tried ${candidates[*]}): install one (Debian: apt-get install python3-venv)," \
        "or set PYTHON=/path/to/python3"
}

make_venv() {
    "$venv_python" -c '' 2>/dev/null && return
    local python
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments: install its venv package" \
            "(Debian: apt-get install python3-venv), or set PYTHON=/path/to/python3"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || fail "could not make $venv: is $root writable?"
}

# install EXTRAS: mpirl and these extras, at the tested versions. Skipped when nothing has changed since the last time.
install() {
    local extras=$1 torch=() log=$venv/install.log stamp
    make_venv
    if command -v nvidia-smi >/dev/null; then
        torch=("torch===$(sed -n 's/^torch==//p' "$root/constraints.txt")")
    fi
    stamp=$(cd "$root" && { cat setup.cfg pyproject.toml constraints.txt; echo "$root $extras ${torch[*]-}"; } | sha256sum)
    [ "$(cat "$venv/installed-$extras" 2>/dev/null)" = "$stamp" ] && return
    say "installing mpirl[$extras] and what it needs into $venv (some minutes the first time; log: $log)"
    if ! "$venv_python" -m pip install --disable-pip-version-check --no-input \
        -e "$root[$extras]" ${torch[@]+"${torch[@]}"} -c "$root/constraints.txt" >"$log" 2>&1; then
        grep -E '^ *(ERROR|error)' "$log" | tail -n 3 >&2 || true
        fail "the installation failed; all of pip's words are in $log. Is the package index reachable, and the disk not full?"
    fi
    echo "$stamp" >"$venv/installed-$extras"
}

# make_mpich_venv: .venv-mpich, in which tests meet the other MPI: MPICH and its mpi4py; all else comes from .venv.
make_mpich_venv() {
    local mpich=$root/.venv-mpich log=$root/.venv-mpich/install.log packages stamp
    packages=$(sed -nE 's/^((mpich|mpi4py)==[^; ]+)$/\1/p' "$root/constraints.txt")
    stamp="$packages $(site_packages "$venv_python")"
    [ "$(cat "$mpich/installed" 2>/dev/null)" = "$stamp" ] && return
    say "making $mpich with" $packages
    "$venv_python" -m venv --clear "$mpich" || fail "could not make $mpich: is $root writable?"
    "$mpich/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps $packages >"$log" 2>&1 ||
        fail "the installation of MPICH failed; all of pip's words are in $log. Is the package index reachable?"
    # After its own packages, those of .venv. (addsitedir, unlike a plain path, also minds .venv's own .pth files: mpirl's.)
    echo "import site; site.addsitedir('$(site_packages "$venv_python")')" >"$(site_packages "$mpich/bin/python")/main.pth"
    echo "$stamp" >"$mpich/installed"
}

site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# Open MPI refuses to run as root unless told twice.
allow_root() {
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}
