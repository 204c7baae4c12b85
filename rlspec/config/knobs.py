"""Which of TRL's knobs a recipe may not set, because rlspec sets them or because they would have no effect."""

from __future__ import annotations

from collections.abc import Mapping

_SAMPLER = "nothing: the order of prompts follows from seed alone"
_EVALUATION = "evaluation.*: rlspec measures by itself"
_UPLOAD = "push=OWNER/NAME"
_SHARDED = "sharding=fsdp2 launch=torchrun launch.processes=N"
_PAGED = "rollout.engine: this path casts the weights that are trained to bfloat16"

# Knob -> what to use instead.
REPLACED: Mapping[str, str] = {
    "output_dir": "output_dir",
    "run_name": "run",
    "logging_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "use_cpu": "device",
    "local_rank": "launch=torchrun launch.processes=N",
    "resume_from_checkpoint": "resume",
    "restore_callback_states_from_checkpoint": "resume",
    "ignore_data_skip": "resume",
    # optimizer
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "adam_epsilon": "optim.eps",
    "optim": "optim=NAME",
    "optim_args": "optim.*",
    "optim_target_modules": "optim.overrides",
    "deepspeed": "sharding=fsdp2: DeepSpeed flattens the matrices that spectral rules need",
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "parallelism_config": _SHARDED,
    "accelerator_config": "nothing: processes and their batches follow from torchrun and batch.*",
    # batch
    "per_device_train_batch_size": "batch.micro_batch",
    "auto_find_batch_size": "batch.micro_batch",
    "gradient_accumulation_steps": "batch.prompts_per_step and batch.micro_batch",
    "generation_batch_size": "batch.prompts_per_step and batch.updates_per_generation",
    "steps_per_generation": "batch.updates_per_generation",
    "num_generations": "batch.samples_per_prompt",
    "num_generations_eval": "evaluation.samples",
    "dataloader_drop_last": _SAMPLER,
    "train_sampling_strategy": _SAMPLER,
    "length_column_name": _SAMPLER,
    "remove_unused_columns": "data.columns",
    # model and prompts
    "model_init_kwargs": "model.weights_dtype, model.attn_implementation, model.revision and model.architecture",
    "trust_remote_code": "nothing: models with code of their own are not supported",
    "chat_template_kwargs": "model.enable_thinking",
    "chat_template_path": "a tokenizer folder with that template: model.path",
    "eos_token": "a tokenizer folder with that token: model.path",
    "pad_token": "a tokenizer folder with that token: model.path",
    "dataset_text_field": "data.columns",
    # rollouts
    "use_vllm": "rollout.engine=vllm",
    "use_transformers_continuous_batching": _PAGED,
    "transformers_continuous_batching_config": _PAGED,
    "use_transformers_paged": _PAGED,
    "vllm_importance_sampling_cap": "trainer.vllm_importance_sampling_clip_max",
    "reward_weights": "reward=[{name: ..., weight: ...}, ...]",
    # evaluation
    "do_train": "nothing: rlspec.train trains",
    "do_eval": "evaluation.before and evaluation.after",
    "do_predict": "evaluation.before and evaluation.after",
    "eval_strategy": "evaluation.every",
    "eval_steps": "evaluation.every",
    "eval_delay": "evaluation.every",
    "eval_on_start": "evaluation.before",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_packing": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "label_names": _EVALUATION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    # checkpoints
    "save_strategy": "checkpoints.every",
    "save_steps": "checkpoints.every",
    "save_total_limit": "checkpoints.keep_last",
    "save_only_model": "nothing: a checkpoint without the optimizer cannot be resumed",
    "save_on_each_node": "nothing: the main process writes",
    "enable_jit_checkpoint": "checkpoints.every",
    "load_best_model_at_end": "checkpoints.keep_best",
    "metric_for_best_model": "checkpoints.keep_best",
    "greater_is_better": "checkpoints.keep_best",
    "push_to_hub": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "hub_strategy": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_private_repo": _UPLOAD,
    "hub_always_push": _UPLOAD,
    "hub_revision": _UPLOAD,
    "log_completions_hub_repo": _UPLOAD,
    # reports
    "report_to": "report.tensorboard and report.wandb",
    "disable_tqdm": "report.display",
    "logging_strategy": "trainer.logging_steps",
    "project": "report.wandb",
    "trackio_space_id": "report.wandb",
    "warmup_ratio": "trainer.warmup_steps (below 1 it is a share of all steps)",
}

# Knobs of earlier releases -> what holds now.
REMOVED: Mapping[str, str] = {
    "max_prompt_length": "leave it out: a prompt is dropped before training, by name, where it leaves no room for "
    "trainer.max_completion_length in the model's context",
}

# What a loss on sampled completions does not read.
IGNORED_BY_RL = frozenset({"label_smoothing_factor"})

# What fine-tuning on examples that are tokens already does not read.
IGNORED_BY_SFT = frozenset(
    {
        "assistant_only_loss",
        "completion_only_loss",
        "dataset_kwargs",
        "dataset_num_proc",
        "max_length",
        "packing",
        "packing_strategy",
        "padding_free",
        "shuffle_dataset",
    }
)

# What GRPO's loss reads and GMPO's does not.
IGNORED_BY_GMPO = frozenset(
    {
        "delta",
        "entropy_coef",
        "entropy_coef_delta",
        "entropy_coef_max",
        "entropy_coef_min",
        "entropy_target",
        "importance_sampling_level",
        "liger_kernel_config",
        "loss_type",
        "off_policy_mask_threshold",
        "router_aux_loss_coef",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "top_entropy_quantile",
        "use_adaptive_entropy",
        "use_bias_correction_kl",
        "use_liger_kernel",
        "vespo_k_neg",
        "vespo_k_pos",
        "vespo_lambda_neg",
        "vespo_lambda_pos",
    }
)

# Beginnings of knobs that have an effect only where another knob has one of these values.
NEEDS: tuple[tuple[tuple[str, ...], str, tuple[object, ...]], ...] = (
    (("sapo_",), "loss_type", ("sapo",)),
    (("vespo_",), "loss_type", ("vespo",)),
    (("entropy_coef_", "entropy_target"), "use_adaptive_entropy", (True,)),
    (("ref_model_",), "sync_ref_model", (True,)),
    (("num_completions_to_print", "log_unique_prompts", "log_multimodal"), "log_completions", (True,)),
    (("gradient_checkpointing_kwargs",), "gradient_checkpointing", (True,)),
    (("liger_kernel_config",), "use_liger_kernel", (True,)),
    (("packing_strategy",), "packing", (True,)),
    (("torch_compile_",), "torch_compile", (True,)),
)
