export NPROC_PER_NODE=2
VIDEO_MAX_PIXELS=50176 \
FPS_MAX_FRAMES=12 \
swift sft \
    --model Qwen/Qwen2.5-VL-7B-Instruct \
    --dataset data/pets.jsonl \
    --val_dataset data/pairs.jsonl \
    --tuner_type full \
    --freeze_vit false --freeze_aligner false \
    --vit_lr 1e-6 \
    --per_device_train_batch_size 4 \
    --gradient_checkpointing true --vit_gradient_checkpointing true \
    --attn_impl flash_attn --padding_free true \
    --use_liger_kernel true \
    --loss_scale last_round \
    --save_only_model true \
    --save_strategy epoch
