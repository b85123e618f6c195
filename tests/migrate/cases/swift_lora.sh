# 22 GiB
MODEL=Qwen/Qwen2.5-VL-7B-Instruct
CUDA_VISIBLE_DEVICES=0 \
MAX_PIXELS=1003520 \
swift sft \
    --model $MODEL \
    --dataset 'data/pets.jsonl#8' \
    --split_dataset_ratio 0.25 \
    --train_type lora \
    --torch_dtype bfloat16 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 2 \
    --per_device_eval_batch_size 1 \
    --learning_rate 1e-4 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --target_modules all-linear \
    --freeze_vit true \
    --eval_steps 2 \
    --save_steps 2 \
    --save_total_limit 2 \
    --logging_steps 1 \
    --max_length 2048 \
    --output_dir output \
    --warmup_ratio 0.05 \
    --load_from_cache_file true \
    --deepspeed zero2 \
    --dataloader_num_workers 0
