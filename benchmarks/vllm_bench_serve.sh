#!/bin/bash
# vLLM's own `vllm bench serve` on word problems: plain vLLM serving the embedded base, and an exported gated folder, in turn.
#
#     multitoken export src/multitoken/quickstart/checkpoints/gated runs/gated-export --threshold 0.7
#     .venv-vllm/bin/pip install pandas          # which `vllm bench` needs
#     bash benchmarks/vllm_bench_serve.sh runs/gated-export
#
# Three minutes on 2 cores. Servers on ports 8101 and 8102 of this machine only; both stop at the end.
set -eu
gated=${1:?expected the folder of an exported gated checkpoint}
vllm=${VLLM:-.venv-vllm/bin/vllm}
python=$(dirname "$vllm")/python
base=src/multitoken/quickstart/checkpoints/base
folder=$(mktemp -d)
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=WARNING
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
# vllm-cpu goes by another name, and `vllm serve` looks for a distribution that is named vllm.
"$python" - "$folder" <<'PY'
import pathlib, sys
info = pathlib.Path(sys.argv[1]) / "vllm-0.32.0+cpu.dist-info"
info.mkdir()
(info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
PY
export PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}

"$python" -c "
import json
from multitoken.quickstart.corpus import examples
for example in examples('word-problems', 'speed', 400):
    print(json.dumps({'prompt': example.prompt}))" > "$folder/prompts.jsonl"

servers=()
serve() {
    "$vllm" serve "$1" --host 127.0.0.1 --port "$2" --dtype float32 --block-size 32 --max-model-len 1024 --max-num-seqs 32 \
        --served-model-name m > "$folder/$2.log" 2>&1 &
    servers+=($!)
}
trap 'kill "${servers[@]}"; wait; rm -rf "$folder"' EXIT
serve "$base" 8101
serve "$gated" 8102
for port in 8101 8102; do
    for _ in $(seq 300); do
        curl -sf "http://127.0.0.1:$port/health" && break
        sleep 1
    done
done

bench() { # port, requests at once, prompts
    "$vllm" bench serve --backend openai --endpoint /v1/completions --base-url "http://127.0.0.1:$1" --model m \
        --tokenizer "$gated" --dataset-name custom --dataset-path "$folder/prompts.jsonl" --custom-output-len 200 \
        --temperature 0 --disable-shuffle --num-prompts "$3" --num-warmups 4 --max-concurrency "$2" --disable-tqdm 2> /dev/null |
        grep -E "Successful|duration|Total generated|Output token throughput|Mean TTFT|Mean TPOT|Acceptance"
}
for round in 1 2; do
    for at_once in 1 8; do
        for port in 8101 8102; do
            echo "== round $round, $at_once at once, $([ $port = 8101 ] && echo plain vLLM || echo gated)"
            bench $port $at_once $([ $at_once = 1 ] && echo 24 || echo 96)
        done
    done
done
