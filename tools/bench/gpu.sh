#!/usr/bin/env bash
# What only an NVIDIA GPU can show: its tests, and rows for benchmarks/. In parts, the most wanted rows first, each of less
# than nine minutes on an H100 (estimated by what single commands took there). Benches write a row as it is there.
#
#   tools/bench/gpu.sh [PART…]                   all parts if none is named; in an environment that has the project,
#                                                transformers and a torch built for CUDA
#   OUT=FOLDER tools/bench/gpu.sh …              rows go to a file per bench there instead of benchmarks/
#   DEVICE=cpu REHEARSE=1 tools/bench/gpu.sh …   every command line here, with tiny models and few steps
set -uo pipefail
OUT=${OUT:+$(realpath -m "$OUT")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PARTS=(mpt-1b mpt-125m mpt-3b llama-1b llama-125m llama-3b long-mpt long-llama long-3b stages ladder
    tests tests-kernels attention attention-gqa memory memory-3b optimizers loss throughput eager-3b)
DEVICE=${DEVICE:-cuda}
REHEARSE=${REHEARSE:-}
[ -z "$REHEARSE" ] || OUT=${OUT:-$(mktemp -d)}

size() { # REAL REHEARSED
    [ -n "$REHEARSE" ] && echo "$2" || echo "$1"
}

tiny() { # MODELS, or arms: as they are rehearsed on a CPU
    local names='s/(mpt|llama)-[0-9]+[mb]/\1-tiny/g; s/micro_batch=[0-9]+/micro_batch=1/g; s/loss_chunk=2048/loss_chunk=16/g'
    [ -n "$REHEARSE" ] && sed -E "$names; s/attention=flex/attention=blocked/g" <<<"$1" || echo "$1"
}

try() {
    echo "+ $*"
    "$@" || failed+=("$part: $*")
}

bench() { # NAME OPTION…
    local name=$1 page=()
    shift
    [ -z "$OUT" ] || page=(--out "$OUT/${name/#train/training}.md")
    try python "tools/bench/$name.py" --device "$DEVICE" "$@" "${page[@]}"
}

build() { # OPTIMIZER…
    local optimizer
    for optimizer; do try python -m hpc_llm.build "optim=$optimizer" "cluster.device=$DEVICE"; done
}

# train MODEL SEQUENCES PER-PASS ARMS [OPTION…]; --alone where a GPU holds one arm at a time. Before it may stand rounds=,
# turns=, turn_steps=, warmup=, length=, stage=, precision= and words=, which differ from these:
train() {
    local model=$1 sequences=$2 per_pass=$3 arms=$4 words=(${words:-})
    shift 4
    words=("train.zero_stage=${stage:-1}" train.activation_checkpointing=false "${words[@]}")
    bench train --models "$(tiny "$model")" --batch "$(size "$sequences" 4)" --micro-batch "$(size "$per_pass" 2)" \
        --precisions "${precision:-bf16}" --seq-len "$(size "${length:-2048}" 32)" --rounds "$(size "${rounds:-3}" 1)" \
        --turns "$(size "${turns:-1}" 1)" --turn-steps "$(size "${turn_steps:-3}" 1)" --warmup "$(size "${warmup:-3}" 1)" \
        --max-others 1 --patience 0 --arms "$(tiny "$arms")" --words "${words[@]}" "$@"
}

long() { # as train
    rounds=2 length=8192 words=model.max_seq_len=8192 train "$@" --alone
}

attention() { # HEADS HEAD-SIZE LENGTHS BACKENDS [OPTION…]
    local heads=$1 head_size=$2 lengths=$3 backends=$4
    shift 4
    bench attention --tokens "$(size 16384 128)" --lengths "$(size "$lengths" 64,128)" --documents "$(size 1,16 1,4)" \
        --rounds "$(size 5 1)" --heads "$heads" --head-size "$head_size" --backends "$backends" "$@"
}

memory() { # MODELS PRECISION STAGES SEQUENCES
    bench memory --models "$(tiny "$1")" --precisions "$2" --stages "$3" --batch "$(size "$4" 2)" --seq-len "$(size 2048 32)"
}

theirs="transformers, DeepSpeed: train.micro_batch"
best="transformers, compiled, DeepSpeed: train.micro_batch"
checkpointed="train.activation_checkpointing=true" # what transformers' MPT needs where ours does not

run() {
    case $1 in
        # 12 processes of half a minute and more
        mpt-1b) train mpt-1b 16 8 "ours;bare;$best=2;$theirs=2" --alone ;;
        mpt-125m)
            turns=3 turn_steps=10 train mpt-125m 16 16 "ours;bare;deepspeed"
            rounds=2 train mpt-125m 16 16 "ours;$best=8;$theirs=4;transformers, compiled: train.micro_batch=8" --alone
            ;;
        # 6 processes of a minute
        mpt-3b) turn_steps=2 warmup=2 train mpt-3b 16 4 "ours;$best=4 $checkpointed" --alone ;;
        llama-1b) train llama-1b 16 8 "ours;bare;$best=4;$theirs=4" --alone ;;
        llama-125m)
            turns=3 turn_steps=10 train llama-125m 16 16 "ours;bare;deepspeed"
            rounds=2 train llama-125m 16 16 "ours;$best=8;$theirs=8;transformers, compiled: train.micro_batch=8" --alone
            ;;
        llama-3b) turn_steps=2 warmup=2 train llama-3b 16 2 "ours;$best=1" --alone ;;
        long-mpt)
            long mpt-1b 4 2 "ours;$best=1 $checkpointed"
            long mpt-125m 8 4 "ours;$best=1 $checkpointed"
            ;;
        long-llama)
            long llama-1b 4 2 "ours;$best=1"
            long llama-125m 8 4 "ours;$best=2"
            ;;
        long-3b) long mpt-3b 4 1 "ours;$best=1 $checkpointed" ;;
        # What DeepSpeed adds, by stage. In bf16 it has no stage 0.
        stages)
            local rounds=2 turns=3 turn_steps=10 stage
            stage=0 precision=fp32 train mpt-125m 16 4 "bare;deepspeed;ours"
            for stage in 1 2 3; do train mpt-125m 16 16 "bare;deepspeed;ours"; done
            ;;
        # One change a row, from eager to what `auto` chooses (ours), and its larger micro-batch.
        ladder)
            build fused_adam
            local chunks="train.loss_chunk=2048" compiled="train.compile=true" arms
            arms="ours;ours: optim=fused_adam train.compile=false train.attention=sdpa $chunks"
            arms+=";ours: optim=fused_adam $compiled train.attention=sdpa $chunks"
            arms+=";ours: optim=torch_adam $compiled train.attention=sdpa $chunks"
            arms+=";ours: optim=torch_adam $compiled train.attention=folded $chunks"
            arms+=";ours: optim=torch_adam $compiled train.attention=flex $chunks"
            arms+=";ours: train.micro_batch=16"
            rounds=2 turn_steps=10 train mpt-125m 16 8 "$arms" --alone
            ;;
        tests)
            build fused_adam cpu_adam
            try python -m pytest -q tests/gpu --ignore tests/gpu/test_backends_on_a_gpu.py
            ;;
        tests-kernels) try python -m pytest -q tests/gpu/test_backends_on_a_gpu.py ;;
        attention)
            attention 16 128 2048,8192,65536 flex,folded,sdpa
            attention 16 128 2048,8192 flex@hoisted
            ;;
        attention-gqa)
            attention 32 64 2048,8192 sdpa,flex --kv-heads 8 --positions none
            attention 24 128 2048,8192 sdpa,flex --kv-heads 8 --positions none
            attention 12 64 2048,8192,65536 flex,folded,sdpa
            ;;
        memory)
            memory mpt-125m fp32 0 8
            memory mpt-125m,llama-1b bf16 1,2,3 8
            ;;
        memory-3b) memory mpt-3b bf16 1,2,3 4 ;;
        # The largest size that fits with each of them.
        optimizers)
            build fused_adam cpu_adam
            rounds=2 train mpt-1b 16 8 "ours;ours: optim=fused_adam;ours: optim=muon;ours: optim=cpu_adam" --alone
            ;;
        loss)
            local precision rounds
            for precision in bf16 fp32; do
                rounds=$([ "$precision" = bf16 ] && echo 3 || echo 1)
                bench loss --precisions "$precision" --rounds "$(size "$rounds" 1)" --tokens "$(size 16384 64)" \
                    --width "$(size 2048 32)" --chunks "$(size 2048 32)" --vocabularies "$(size 50432,128256 512)"
            done
            ;;
        # A small vocabulary: training a tokenizer of 50,000 pieces would take longer than the runs.
        throughput)
            bench throughput --steps "$(size 60 30)" --words "model=$(tiny mpt-125m)" model.vocab_size=4096 \
                optim=torch_adam "train.seq_len=$(size 2048 32)"
            ;;
        eager-3b)
            rounds=2 turn_steps=2 warmup=2 train mpt-3b 16 4 "ours;$theirs=4 $checkpointed" --alone
            rounds=2 turn_steps=2 warmup=2 train llama-3b 16 2 "ours;$theirs=1" --alone
            ;;
    esac
}

for part; do
    if [[ " ${PARTS[*]} " != *" $part "* ]]; then
        echo "gpu.sh: no part $part; there are: ${PARTS[*]}" >&2
        exit 2
    fi
done
failed=()
for part in "${@:-${PARTS[@]}}"; do
    begun=$SECONDS
    run "$part"
    echo "$part: $((SECONDS - begun)) s"
done
[ -z "$OUT" ] || { echo "rows are in $OUT; of these say that they are not possible:" && grep -hs "not possible" "$OUT"/*.md; }
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
