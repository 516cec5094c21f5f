#!/usr/bin/env bash
# Everything that is to be known of the trainer on a GPU, from one program that was built elsewhere.
set -euo pipefail

usage() {
    cat <<'END'
Usage: trainer/benches/gpu.sh [OPTION]... PART...

Parts, each meant to take less than 8 minutes, in any order:
  check       every operation that has a kernel, its gradients, and short trainings, against the CPU; what the card is
  beauty      a short training on Beauty, in 32 and in 16 bits; HR@10 beside that of the model `cpu` in --root
  length      throughput and memory with histories of 50 to 1,024 tokens; else d = 128, 6,000,000 items, 256 histories of 100
  width       the same with models 64 to 512 wide
  catalogue   the same with catalogues of 12,000 to 6,000,000 items
  loss        the same with 512 to 32,768 negatives of 1,000,000 items
  full        the same with the softmax over a whole catalogue of 12,000 and of 100,000 items
  pytorch     the trainer and PyTorch in turn, eager and compiled: d = 256, 1,024 histories of 200, 8,192 negatives
  ragged      the same with histories of 20 to 200, padded and nested
  profile     one step with 6,000,000 items: time by kernel, share of the card's limits (needs ncu)
  all         all of them, one after the other

Each leaves gpu-<part>.json in --out, `pytorch` and `ragged` one object a line in gpu-<part>.jsonl. Beforehand, where there is no GPU:
  prepare     the tables of Beauty and the model `cpu` in --root, from --events and --items

Options:
  --trainer PROGRAM   built by trainer/cuda/build.sh [default: its launcher]
  --libraries DIR     where CUDA's libraries are [default: those of python3's NVIDIA packages, where there are some]
  --device DEVICE     [default: cuda:0]
  --root DIR          for `beauty` and `prepare` [default: runs/gpu]
  --events FILE       reviews.csv of Beauty, for `prepare`
  --items FILE        items.jsonl of Beauty, for `prepare`
  --pipeline PROGRAM  for `prepare` [default: pipeline]
  --python PROGRAM    one that has PyTorch [default: python3]
  --out DIR           [default: trainer/benches/results]
  --seconds N         of each measurement, a whole number [default: 3]
  -h, --help          this text
END
}

fail() {
    echo "gpu.sh: $*" >&2
    exit 1
}

benches=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$benches/../.." && pwd)
trainer=${XDG_CACHE_HOME:-$HOME/.cache}/climber-pilot/cuda/bin/trainer
libraries= device=cuda:0 root=runs/gpu events= items= pipeline=pipeline python=python3
out=$benches/results seconds=3
parts=()
while (($#)); do
    option=$1
    shift
    case $option in
    -h | --help) usage && exit ;;
    --trainer | --libraries | --device | --root | --events | --items | --pipeline | --python | --out | --seconds)
        (($#)) || fail "$option needs a value"
        printf -v "${option#--}" %s "$1"
        shift
        ;;
    check | beauty | length | width | catalogue | loss | full | pytorch | ragged | profile | prepare) parts+=("$option") ;;
    all) parts+=(check beauty length width catalogue loss full pytorch ragged profile) ;;
    *) fail "unknown part or option $option; --help lists them" ;;
    esac
done
((${#parts[@]})) || { usage >&2 && exit 2; }
mkdir -p "$out"

if [[ ! $libraries ]]; then
    libraries=$("$python" -c 'import pathlib, sysconfig
print(":".join(map(str, pathlib.Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/lib"))))' 2>/dev/null || true)
fi
[[ $libraries ]] && export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
[[ -x $trainer ]] || fail "$trainer is no program; trainer/cuda/build.sh builds it, --trainer says where it is"
missing=$(LC_ALL=C ldd "$trainer" 2>/dev/null | grep 'not found' || true)
[[ ! $missing ]] || fail "libraries are missing; --libraries says where they are:"$'\n'"$missing"

# On a GPU in 16 bits; on a CPU, to try this out, in 32.
precision=bf16
if [[ $device == cpu ]]; then
    precision=f32
else
    # PyTorch and the profiler see this one alone.
    export CUDA_VISIBLE_DEVICES=${device#cuda:}
    device=cuda:0
fi
on=(--set "device=$device" --set "precision=$precision")

# Beauty: ten epochs are enough to tell whether it is learned as well.
beauty=(--config "$repository/config/amazon.toml" --root "$root" --set pretrain.epochs=10)

measured() {
    echo "== $1" >&2
    "$trainer" device throughput "${on[@]}" --seconds "$seconds" "${@:2}" --json >"$out/gpu-$1.json"
}

# The trainer and PyTorch in turn, twice; one JSON object a line.
in_turn() {
    local file=$out/gpu-$1.jsonl failures=0 variant
    shift
    : >"$file"
    for _ in 1 2; do
        "$trainer" device throughput "${on[@]}" "$@" --seconds "$seconds" --json >>"$file"
        for variant in "${variants[@]}"; do
            # shellcheck disable=SC2086 # several arguments
            "$python" "$benches/pytorch_climber.py" "$@" --precision $precision --device "${device%:*}" --seconds "$seconds" \
                $variant >>"$file" || {
                echo "{\"variant\": \"$variant\", \"failed\": true}" >>"$file"
                failures=$((failures + 1))
            }
        done
    done
    cat "$file" >&2
    ((failures == 0)) || fail "PyTorch failed $failures times; $file says where"
}

part() {
    case $1 in
    prepare)
        [[ $events && $items ]] || fail "prepare needs --events and --items"
        "$pipeline" ingest "${beauty[@]}" --events "$events" --items "$items"
        "$pipeline" build-sequences "${beauty[@]}"
        "$trainer" pretrain "${beauty[@]}" --name cpu
        "$trainer" evaluate "${beauty[@]}" --model cpu
        ;;
    check) "$trainer" device check --set "device=$device" --json >"$out/gpu-check.json" ;;
    beauty)
        local kind
        for kind in f32 bf16; do
            [[ $device == cpu && $kind == bf16 ]] && continue
            local of=("${beauty[@]}" --set "device=$device" --set "precision=$kind")
            "$trainer" pretrain "${of[@]}" --name "gpu-$kind" --fresh
            "$trainer" evaluate "${of[@]}" --model "gpu-$kind"
        done
        local runs=(cpu gpu-f32)
        [[ $device == cpu ]] || runs+=(gpu-bf16)
        "$trainer" compare "${beauty[@]}" "${runs[@]}" --json >"$out/gpu-beauty.json"
        ;;
    length) measured length --vary length=50,100,200,400,1024 ;;
    width) measured width --vary d=64,128,256,512 ;;
    catalogue) measured catalogue --vary items=12000,100000,1000000,6000000 ;;
    loss) measured loss --items 1000000 --vary negatives=512,2048,8192,32768 ;;
    full) measured full --negatives 0 --vary items=12000,100000 ;;
    pytorch)
        variants=("--mode eager" "--mode compile" "--mode eager --attention causal" "--mode compile --attention causal")
        in_turn pytorch --d 256 --length 200 --sequences 1024 --items 1000000 --negatives 8192
        ;;
    ragged)
        variants=("--mode eager" "--mode compile" "--mode eager --layout nested" "--mode compile --layout nested")
        in_turn ragged --d 256 --length 200 --shortest 20 --sequences 1024 --items 1000000 --negatives 8192
        ;;
    profile)
        command -v ncu >/dev/null || fail "profile needs NVIDIA's ncu"
        ncu --clock-control none --profile-from-start off --csv --metrics \
            gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed \
            "$trainer" device step "${on[@]}" >"$out/gpu-profile.csv"
        "$python" "$benches/gpu_profile.py" "$out/gpu-profile.csv" >"$out/gpu-profile.json"
        rm "$out/gpu-profile.csv"
        ;;
    esac
}

failed=()
for name in "${parts[@]}"; do
    # What one part finds does not keep the others from being done. In a condition, `set -e` would not count inside.
    set +e
    (
        set -e
        part "$name"
    )
    status=$?
    set -e
    ((status == 0)) || failed+=("$name")
done
((${#failed[@]} == 0)) || fail "failed: ${failed[*]}"
