#!/usr/bin/env bash
# Proof and speed on a GPU, in stages that each end within nine minutes:
#
#   benchmarks/gpu.sh [--dry-run] [--wheels DIR] [--out DIR] [STAGE ...]      all stages unless some are named
#
#   environment   versions and device; what its memory and its matrix units reach
#   correctness   every kernel at real shapes against its twin, then tests/kernels
#   kernels       the speed of every kernel beside the library operations for the same work
#   golden        the golden requests end to end, in float32 token by token, in bfloat16 as far as they are equal
#   counts        floors and memory by arithmetic, starts and bytes of a step by count; what the CPU does for the GPU
#   full          decoding with random weights of the full size, with experts and cache in bfloat16, and in fp8
#   parts         vision by crop count, prefill by length, of the same
#   linears       vision, prefill and decoding with linears in fp8, too
#   dependent     golden requests, and decoding in fp8, with kernels started while those before them end
#   streams       the same with attention and MLP on two streams
#   throughput    requests/s on a load shaped like ChartQA's, with experts and cache in fp8
#
# Results go to --out, else to $OUT, else to benchmarks/results, as gpu-*.json and gpu.log; a summary is printed last.
# Needs Python with torch, triton, numpy, pillow, tokenizers, safetensors and tqdm, and for the tests pytest and
# hypothesis, but no network, nor mdinfer installed. --wheels DIR unpacks what is missing from wheels lying there.
# --dry-run runs every command on the CPU at its smallest, which shows that the commands work, and no more.
set -uo pipefail
cd "$(dirname "$0")/.."

stages=() dry="" wheels="" out="${OUT:-benchmarks/results}"
while (($#)); do
  case "$1" in
    --dry-run) dry=1 ;;
    --wheels) wheels=$2 && shift ;;
    --out) out=$2 && shift ;;
    environment | correctness | kernels | golden | counts | full | parts | linears | dependent | streams | throughput) stages+=("$1") ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 2 ;;
  esac
  shift
done
((${#stages[@]})) || stages=(environment correctness kernels golden counts full parts linears dependent streams throughput)
mkdir -p "$out" && log="$out/gpu.log" && : >"$log" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [[ $wheels ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install --quiet --no-index --no-deps --target "$site" "$wheels"/*.whl || exit 2
  export PYTHONPATH="$PYTHONPATH:$site" # behind what is installed
fi

# Run a command for at most so many seconds; its output goes to the log too. A result is its last argument.
results=()
run() {
  local seconds=$1 start=$SECONDS result=${*: -1}
  shift
  [[ $result == *.json ]] && rm -f "$result" && results+=("$result")
  echo "\$ $*" | tee -a "$log"
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$log"
  local code=$?
  ((code == 0)) || failed+=("$stage: exit code $code after $((SECONDS - start)) s: $*")
}

if [[ $dry ]]; then
  device=cpu chip=90 jobs=2 workers=""
  export TRITON_INTERPRET=1
  few=(--family norm --case "layer_norm[1x2048") tests=tests/kernels/triton/test_float8.py golden=(--limit 1)
  model=(--random 20m --dtype float32 --rounds 1)
  decode=(--batch 1 --prompt 8 --tokens 2 --no-vision) vision=(--crops 2 --whole 64x48) prefill=(--prompt 20 --requests 1)
  charts=(--clients 1 --answers 2 --least 2 --rounds 1) counted=(--batch 1 --steps 4)
  pictures=(--kind photo-jpeg-850x600 --threads 1 --seconds 0.1 --rounds 1)
else
  unset TRITON_INTERPRET
  device=cuda jobs=$(nproc)
  chip=$(python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 2
  workers=$(python3 -c 'import xdist' 2>/dev/null && echo "-n 8")
  few=() tests=tests/kernels golden=()
  model=(--random full --dtype bfloat16 --rounds 3)
  decode=(--batch 1 4 16 64 --prompt 800 --tokens 32) vision=(--whole 850x600 4000x3000) prefill=() counted=() pictures=(--seconds 0.5)
  charts=(--random full --dtype bfloat16 --clients 1 4 16 64 --rounds 2)
fi

# All at once on all cores, into Triton's cache; the commands after it find their kernels there.
compiled=""
compile() {
  [[ $compiled ]] && return
  compiled=1
  run 150 env -u TRITON_INTERPRET python3 -m benchmarks.aot --chip "$chip" --jobs "$jobs" ${dry:+--family norm}
}

failed=()
for stage in "${stages[@]}"; do
  begun=$SECONDS
  case $stage in
    environment)
      run 120 python3 -m benchmarks.kernels.measure --device $device --json "$out/gpu-environment.json"
      ;;
    correctness)
      compile
      run 200 python3 -m benchmarks.kernels.check --device $device --budget 170 "${few[@]}" --json "$out/gpu-check.json"
      # shellcheck disable=SC2086
      run 170 python3 -m pytest -p no:cacheprovider $workers $tests
      ;;
    kernels)
      compile
      run 370 python3 -m benchmarks.kernels.speed --device $device --budget 340 "${few[@]}" --json "$out/gpu-speed.json"
      ;;
    golden)
      run 480 python3 -m benchmarks.golden --device $device --dtype float32 bfloat16 "${golden[@]}" \
        --json "$out/gpu-golden.json"
      ;;
    counts)
      run 30 python3 -m benchmarks.roofline --json "$out/gpu-roofline.json"
      run 60 python3 -m benchmarks.memory --json "$out/gpu-memory.json"
      for precision in bf16 fp8; do
        run 60 python3 -m benchmarks.launches "${counted[@]}" --experts $precision --kv $precision \
          --json "$out/gpu-launches-$precision.json"
      done
      run 200 python3 -m benchmarks.images "${pictures[@]}" --json "$out/gpu-images.json"
      ;;
    full)
      for precision in bf16 fp8; do
        run 250 python3 -m benchmarks.decode --device $device --experts $precision --kv $precision "${model[@]}" \
          "${decode[@]}" --json "$out/gpu-full-$precision.json"
      done
      ;;
    parts)
      run 150 python3 -m benchmarks.vision --device $device "${model[@]}" "${vision[@]}" --json "$out/gpu-vision.json"
      for precision in bf16 fp8; do
        run 190 python3 -m benchmarks.prefill --device $device --experts $precision --kv $precision "${model[@]}" \
          "${prefill[@]}" --json "$out/gpu-prefill-$precision.json"
      done
      ;;
    linears)
      all=(--experts fp8 --linears fp8 --kv fp8)
      run 120 python3 -m benchmarks.vision --device $device --linears fp8 "${model[@]}" "${vision[@]}" \
        --json "$out/gpu-vision-linears.json"
      run 170 python3 -m benchmarks.prefill --device $device "${all[@]}" "${model[@]}" "${prefill[@]}" \
        --json "$out/gpu-prefill-linears.json"
      run 230 python3 -m benchmarks.decode --device $device "${all[@]}" "${model[@]}" "${decode[@]}" \
        --json "$out/gpu-full-linears.json"
      ;;
    dependent)
      # These kernels are others than those of the other stages. With the Triton that is here, too, each must wait.
      run 60 env -u TRITON_INTERPRET python3 -m benchmarks.aot --dependent --chip "$chip" --jobs "$jobs" \
        ${dry:+--family norm}
      run 230 python3 -m benchmarks.golden --device $device --dtype float32 --option dependent_launch=true "${golden[@]}" \
        --json "$out/gpu-golden-dependent.json"
      run 240 python3 -m benchmarks.decode --device $device --experts fp8 --kv fp8 --dependent-launch "${model[@]}" \
        "${decode[@]}" --json "$out/gpu-full-dependent.json"
      ;;
    streams)
      run 240 python3 -m benchmarks.golden --device $device --dtype float32 --option two_streams=true "${golden[@]}" \
        --json "$out/gpu-golden-streams.json"
      run 250 python3 -m benchmarks.decode --device $device --experts fp8 --kv fp8 --two-streams "${model[@]}" \
        "${decode[@]}" --json "$out/gpu-full-streams.json"
      ;;
    throughput)
      run 540 python3 -m benchmarks.throughput --device $device --load charts --experts fp8 --kv fp8 \
        "${charts[@]}" --json "$out/gpu-throughput.json"
      ;;
  esac
  echo "stage $stage took $((SECONDS - begun)) s" | tee -a "$log"
done

for result in "${results[@]}"; do
  [[ -e $result ]] && python3 -m benchmarks.summary "$result"
done
((${#failed[@]})) || exit 0
printf 'FAILED %s\n' "${failed[@]}" | tee -a "$log"
exit 1
