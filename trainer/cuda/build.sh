#!/usr/bin/env bash
# Builds the trainer with CUDA on a machine that needs neither a GPU nor an installed CUDA toolkit.
set -euo pipefail

# The compiler and the libraries, as Python wheels of one release. Drivers of the 580 series load what it makes;
# a newer compiler would ask for a newer driver.
WHEELS=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cublas==13.1.0.3
    nvidia-curand==10.4.0.35
)

usage() {
    cat <<'END'
Usage: trainer/cuda/build.sh [OPTION]... [-- CARGO_ARGUMENT...]

Builds the trainer with CUDA, stripped and optimised as one (profile `cuda` in Cargo.toml).

The CUDA compiler and libraries are installed as Python wheels into a virtual environment (2.4 GB with the download;
where from, pip's own configuration says). The program links them dynamically, so it is started by a launcher, which
says where they are. The machine that trains needs the toolkit's directory and an NVIDIA driver of the 580 series or
newer; this one needs neither GPU nor driver.

What is made here was started without a driver, and has not run on a GPU yet.

Options:
  --dir DIR          where everything goes [default: ${XDG_CACHE_HOME:-$HOME/.cache}/climber-pilot/cuda]
  --toolkit DIR      the virtual environment of the compiler [default: <dir>/toolkit]
  --target-dir DIR   cargo's build directory [default: $CARGO_TARGET_DIR, or <dir>/target]
  --bin DIR          where the launcher `trainer` is written [default: <dir>/bin]
  --capability N     compute capability to compile for: 80 runs on every newer GPU as well (its kernels are compiled
                     again as they are loaded), 90 on Hopper alone [default: $CUDA_COMPUTE_CAP, or 80]
  --python PROGRAM   makes the virtual environment [default: python3]
  --env              install the compiler, then print the build's variables as `export` lines instead of building:
                     eval "$(trainer/cuda/build.sh --env)"; cargo test -p trainer --features cuda
  -h, --help         this text

Arguments after `--` go to cargo, such as `-- -j 2`.
END
}

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

dir=${XDG_CACHE_HOME:-$HOME/.cache}/climber-pilot/cuda
toolkit= target= bin= python=python3 print_env=
capability=${CUDA_COMPUTE_CAP:-80}
while (($#)); do
    option=$1
    shift
    case $option in
    -h | --help) usage && exit ;;
    --env) print_env=1 && continue ;;
    --) break ;;
    --dir | --toolkit | --target-dir | --bin | --capability | --python) ;;
    *) fail "unknown option $option; cargo's arguments come after --, and --help explains the rest" ;;
    esac
    (($#)) || fail "$option needs a value"
    case $option in
    --dir) dir=$1 ;;
    --toolkit) toolkit=$1 ;;
    --target-dir) target=$1 ;;
    --bin) bin=$1 ;;
    --capability) capability=$1 ;;
    --python) python=$1 ;;
    esac
    shift
done
toolkit=$(realpath -m "${toolkit:-$dir/toolkit}")
target=$(realpath -m "${target:-${CARGO_TARGET_DIR:-$dir/target}}")
bin=$(realpath -m "${bin:-$dir/bin}")
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# The compiler, once for each list of wheels.
installed=$toolkit/wheels.txt
if [[ ! -f $installed || $(<"$installed") != "${WHEELS[*]}" ]]; then
    echo "installing the CUDA compiler into $toolkit" >&2
    "$python" -m venv "$toolkit" >&2 || fail "$python cannot make a virtual environment in $toolkit"
    "$toolkit/bin/python" -m pip install --no-deps "${WHEELS[@]}" >&2 ||
        fail "pip could not install the compiler's wheels; \`pip config list\` shows where it looks"
    echo "${WHEELS[*]}" >"$installed"
fi
cuda=$("$toolkit/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/nvidia/cu13
[[ -x $cuda/bin/nvcc ]] || fail "$cuda/bin/nvcc is missing; remove $toolkit and try again"

# Wheels carry versioned names; the linker looks for plain ones.
ln -sfn lib "$cuda/lib64"
for library in cudart:13 cublas:13 cublasLt:13 nvrtc:13 curand:10; do
    ln -sf "lib${library%:*}.so.${library#*:}" "$cuda/lib/lib${library%:*}.so"
done

# The driver's library comes with the driver. To link without one, and to start without one and say so, there is a
# stub in which every function returns CUDA_ERROR_STUB_LIBRARY.
stubs=$cuda/lib/stubs
if [[ ! -e $stubs/libcuda.so.1 ]]; then
    mkdir -p "$stubs"
    # Through the preprocessor, because the header renames functions to their newest versions.
    functions=$(echo '#include <cuda.h>' | cc -E -P -I "$cuda/include" - |
        grep -oE '\bcu[A-Z][A-Za-z0-9_]* *\(' | tr -d ' (' | sort -u)
    for function in $functions cuProfilerStart cuProfilerStop; do
        echo "int $function(void) { return 34; }"
    done | cc -shared -fPIC -nostdlib -Wl,-soname,libcuda.so.1 -x c -o "$stubs/libcuda.so" -
    ln -sf libcuda.so "$stubs/libcuda.so.1"
fi

has_driver() {
    LC_ALL=C ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1 ' && return
    local place
    IFS=: read -ra places <<<"${LD_LIBRARY_PATH:-}"
    for place in "${places[@]}"; do
        [[ -e $place/libcuda.so.1 && $place != "$stubs" ]] && return
    done
    return 1
}

export CUDA_HOME=$cuda CUDA_PATH=$cuda CUDA_COMPUTE_CAP=$capability CARGO_TARGET_DIR=$target
export PATH=$cuda/bin:$PATH
if [[ $print_env ]]; then
    # What tests are started with: the toolkit's libraries, and the stub where there is no driver.
    libraries=$cuda/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    has_driver || libraries=$libraries:$stubs
    printf 'export %s=%q\n' CUDA_HOME "$CUDA_HOME" CUDA_PATH "$CUDA_PATH" CUDA_COMPUTE_CAP "$CUDA_COMPUTE_CAP" \
        CARGO_TARGET_DIR "$CARGO_TARGET_DIR" PATH "$PATH" LD_LIBRARY_PATH "$libraries"
    exit
fi

# Candle links kernels for quantised models, 32 MB of them. No model here is quantised: functions in their place that end the
# program keep them out of it.
cd "$repository"
kernels=$(cargo metadata --format-version 1 --locked --manifest-path trainer/Cargo.toml --features cuda | "$python" -c 'if True:
    import json, pathlib, sys
    packages = json.load(sys.stdin)["packages"]
    print(*(pathlib.Path(p["manifest_path"]).parent for p in packages if p["name"] == "candle-kernels"))')
functions=$(grep -oE '\bfn [A-Za-z0-9_]+' "$kernels/src/ffi.rs" | cut -d' ' -f2 || true)
[[ $functions ]] || fail "$kernels/src/ffi.rs names no functions; Candle has changed, and this script must follow it"
unquantised=$cuda/lib/unquantised
mkdir -p "$unquantised"
for function in $functions; do
    echo "void $function(void) { __builtin_trap(); }"
done | cc -c -fPIC -ffunction-sections -x c -o "$unquantised/moe.o" -
rm -f "$unquantised/libmoe.a"
ar rc "$unquantised/libmoe.a" "$unquantised/moe.o"

flags=(-L "native=$unquantised")
# Equal functions once: the linker that Rust brings for this processor can.
[[ $(uname -m) != x86_64 ]] || flags+=(-C link-arg=-Wl,--icf=all)
cargo rustc --profile cuda -p trainer --bin trainer --features cuda "$@" -- "${flags[@]}"

program=$target/cuda/trainer
mkdir -p "$bin"
cat >"$bin/trainer" <<END
#!/bin/sh
# Starts the trainer that was built with CUDA. Written by trainer/cuda/build.sh.
program=$(printf %q "$program")
libraries=$(printf %q "$cuda/lib")
LD_LIBRARY_PATH="\$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export LD_LIBRARY_PATH
missing=\$(LC_ALL=C ldd "\$program" | grep 'not found')
others=\$(echo "\$missing" | grep -v 'libcuda\.so\.1 ')
if [ -n "\$others" ]; then
    echo "trainer: libraries are missing; run trainer/cuda/build.sh again:" >&2
    echo "\$others" >&2
    exit 1
fi
# Without a driver, the stub in its place: the program starts, computes on the CPU, and says so where asked for a GPU.
[ -z "\$missing" ] || LD_LIBRARY_PATH="\$LD_LIBRARY_PATH:\$libraries/stubs"
exec "\$program" "\$@"
END
chmod +x "$bin/trainer"
echo "$bin/trainer starts $program, $(du -BM --apparent-size "$program" | cut -f1)B" >&2
