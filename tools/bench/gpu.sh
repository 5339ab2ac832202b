#!/usr/bin/env bash
# What only an NVIDIA GPU can show: its tests, then rows for benchmarks/, the most wanted first. Its parts ran on an H100, not yet
# all of it in one go: expect half an hour.
#
#   tools/bench/gpu.sh       in an environment that has the project, transformers and a torch built for CUDA
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for optimizer in fused_adam fused_lion cpu_adam; do
    python -m hpc_llm.build "optim=$optimizer" cluster.device=cuda
done
python -m pytest tests/gpu

# train MODEL SEQUENCES PER-PASS ARMS: one arm on the GPU at a time, three turns each
train() {
    python tools/bench/train.py --device cuda --alone --rounds 3 --turn-steps 3 --warmup 3 --max-others 1 --patience 0 \
        --models "$1" --seq-len 2048 --batch "$2" --micro-batch "$3" \
        --words train.zero_stage=1 train.activation_checkpointing=false --arms "$4"
}
theirs="transformers, DeepSpeed: train.micro_batch"
best="transformers, compiled, DeepSpeed: train.micro_batch"
train mpt-3b 32 4 "ours;transformers, DeepSpeed: train.activation_checkpointing=true"
train llama-3b 32 2 "ours;$theirs=1"
train mpt-1b 16 8 "ours;bare;deepspeed;$theirs=2"
train llama-1b 16 8 "ours;bare;$theirs=4;$best=4"
train llama-125m 16 16 "ours;bare;$theirs=8;$best=8;transformers, compiled: train.micro_batch=8"
train mpt-125m 16 16 "ours;ours: train.compile=false;bare;deepspeed;$theirs=4;$best=8;transformers, compiled: train.micro_batch=8"
for heads in "16 128" "12 64"; do
    read -r number size <<<"$heads"
    python tools/bench/attention.py --device cuda --tokens 16384 --lengths 2048,8192,65536 --documents 1,16 --rounds 20 \
        --heads "$number" --head-size "$size" --backends flex,folded,sdpa
done
python tools/bench/memory.py --device cuda --models mpt-125m,llama-1b --precisions bf16 --stages 1,2,3 --seq-len 2048
python tools/bench/throughput.py --device cuda --words model=mpt-125m train.seq_len=2048
for precision in bf16 fp32; do
    python tools/bench/loss.py --device cuda --precisions "$precision" --tokens 16384 --width 2048 --chunks 2048
done
