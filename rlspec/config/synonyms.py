"""Words of LeRobot, openpi, TRL, verl and plain habit for keys that are called otherwise here."""

from __future__ import annotations

from collections.abc import Callable, Container

# One meaning each: our keys, of which those that a command has are offered in this order, and other tools' words.
_MEANINGS = """
seconds: duration duration_s time time_s minutes length episode_time_s run_time runtime max_seconds time_limit
checkpoint policy model resume: ckpt ckpt_path ckpt_dir checkpoint_path checkpoint_dir model_path model_dir model_name
    model_name_or_path model_id pretrained_path pretrained_name_or_path pretrained_policy_name_or_path adapter_path
    pretrained_checkpoint policy_path policy_dir policy.path policy.dir weights load load_from from_checkpoint run_dir
resume: resume_from resume_from_checkpoint resume_path resume_mode continue
episodes evaluation.episodes: n num n_episodes num_episodes eval.n_episodes episodes_per_task num_trials n_trials trials
    num_trials_per_task rollouts num_rollouts n_rollouts num_demos n_demos
out output_dir: output output_path output_folder out_dir outdir save_dir save_path save_to save_folder dest destination
    target log_dir logdir results_dir result_dir local_dir default_local_dir
report out: output_file out_file
host robot.host server: address addr ip ip_address robot_ip robot.ip fci_ip robot_host hostname bind listen
server host: url uri endpoint remote policy_server policy_url server_url server_address remote_host remote_uri
port: server_port listen_port
token token_file: api_key apikey password secret auth auth_token
rate control_hz fps: hz freq frequency control_frequency control_freq control_rate action_rate actions_per_second max_hz
    frame_rate
prompt: instruction language language_instruction task_description default_prompt single_task
n_action_steps schedule.n_action_steps: open_loop_horizon replan_steps action_horizon num_open_loop_steps
    execute_horizon execution_horizon actions_per_chunk chunk_steps
horizon: chunk_size chunk chunk_length num_actions
task env.tasks: tasks task_name task_names task_id task_ids
env: environment env_name env_id env_type env.type task_suite_name task_suite suite benchmark simulator sim
workers training.num_workers evaluation.workers: num_workers n_workers n_jobs jobs j num_proc nproc processes
    num_processes parallel num_envs n_envs
seed: random_seed rng rng_seed random_state start_seed
data dataset path: dataset dataset_name dataset_path dataset_id dataset_dir data_path data_dir data_file train_data
    train_file train_files repo_id input input_dir input_path in_dir src source_dir file folder dir
source format: type kind format from dataset_type input_format output_format fmt
gold: reference ground_truth groundtruth gt expected label solution reference_answer column
answer completion: prediction pred response reply generated output candidate
evaluation.stop_at_success: early_stopping early_stopping_threshold stopping_threshold success_threshold target_success
    stop_at until_success
data.test_fraction: data.test_size data.val_fraction data.validation_split data.eval_fraction data.val_size
optim: optimizer optimiser optim_name optim_type optimizer_name optimizer_type optim.type optimizer.type
lr_scale: lr lr_mult lr_multiplier lr_factor learning_rate
optim.lr: lr learning_rate step_size peak_lr optimizer_lr optim.learning_rate optimizer.lr actor_lr
optim.adamw_lr_scale: adamw_lr adam_lr muon_lr lr_adam lr_adamw learning_rate_adam aux_lr embed_lr embedding_lr
    embedding_learning_rate optim.adamw_lr optim.adam_lr optim.muon_lr optim.embed_lr
optim.weight_decay: weight_decay wd optimizer_weight_decay optimizer.weight_decay
optim.betas: beta1 beta2 adam_beta1 adam_beta2 adam_betas
batch.prompts_per_step training.batch_size: batch_size bs train_batch_size global_batch_size total_batch_size
    data.train_batch_size
batch.micro_batch training.batch_size: per_device_train_batch_size per_device_batch_size
batch.micro_batch training.gradient_accumulation: micro_batch_size ppo_micro_batch_size ppo_micro_batch_size_per_gpu
    gradient_accumulation_steps grad_accum accumulate_grad_batches
batch.samples_per_prompt: num_generations group_size rollout.n n_samples num_samples rollouts_per_prompt
    n_samples_per_prompt actor_rollout_ref.rollout.n
trainer.max_steps training.steps: steps max_steps num_steps n_steps total_steps train_steps num_train_steps
    total_training_steps max_iters iterations iters
trainer.num_train_epochs training.steps: epochs num_epochs n_epochs num_train_epochs total_epochs
trainer.max_completion_length: max_completion_length max_new_tokens max_tokens max_response_length response_length
trainer.beta: kl_coef kl_beta kl_coeff kl_loss_coef beta kl kl_penalty
trainer.epsilon: epsilon clip_ratio clip_range cliprange clip_eps eps_clip
trainer.temperature: temperature sampling_temperature
training.scheduler.type trainer.lr_scheduler_type: scheduler.type scheduler scheduler_type lr_scheduler
    lr_scheduler_type
trainer.gradient_checkpointing training.gradient_checkpointing: gradient_checkpointing activation_checkpointing
trainer.max_grad_norm training.grad_clip_norm: grad_clip grad_clip_norm max_grad_norm clip_grad_norm clip_grad
    gradient_clip_val grad_norm
model.lora policy.lora: lora peft use_peft use_lora
model.lora.r policy.lora.r: lora_r lora_rank peft.r
model.weights_dtype: dtype torch_dtype model_dtype weight_dtype
model.attn_implementation: attn attention use_flash_attention flash_attn
model.lora.path: adapter_name_or_path lora_path peft_path sft_adapter
checkpoints.every: save_every save_freq save_steps save_interval checkpoint_every ckpt_freq
evaluation.every: eval_every eval_freq eval_steps eval_interval test_freq
trainer.logging_steps training.log_every: log_every log_freq logging_steps log_interval
report.wandb: wandb use_wandb wandb.enable wandb.enabled wandb_project report_to
run: run_name exp_name experiment_name job_name experiment
device: cuda gpu accelerator
fix: repair overwrite in_place inplace
against: compare reference checkpoint policy
norm_stats: norm_stats_path save_norm_stats export stats assets_dir openpi
fps: framerate target_fps resample resample_fps
image_size: resolution size resize image_resolution img_size resize_size image_shape
cameras: camera camera_names image_keys views robot.cameras
limit: max_episodes max_recordings num_episodes n episodes max_samples head
action_space: action_type action_mode action_format control_mode control actions action
video: use_videos use_video videos mp4 save_video
law execution_law: controller control_law law execution_law
roles optim.roles: roles preset
policy.options.chunk_size: policy.chunk_size
push: policy.repo_id policy.push_to_hub push_to_hub hub_model_id hub_repo_id
name: rule optimizer optim rule_name optimizer_name
recipe: config config_path config_name config_file cfg yaml
show: top max_rows print_rows
timeout: timeout_s time_limit max_time
robot: robot.type robot_type arm robot_name robot_id
mode: dry_run dryrun real shadow simulate
yes: y force confirm no_confirm skip_confirm assume_yes
estop_file: estop stop_file e_stop
print: show_config print_config
json: as_json
max_batch: batch batch_size max_batch_size
failures: failure_rate num_failures
noise: noise_std std sigma noise_level noise_scale action_noise
mutations: num_mutations n_mutations variants perturbations
"""


# Knobs of TRL that are often written without their section.
_KNOBS = """
bf16 delta epsilon_high importance_sampling_level loss_type lr_scheduler_kwargs mask_truncated_completions min_p
    num_iterations off_policy_mask_threshold repetition_penalty scale_rewards sync_ref_model top_entropy_quantile top_k
    top_p torch_compile use_bias_correction_kl use_liger_kernel vllm_gpu_memory_utilization vllm_mode warmup_steps
"""


def _table() -> list[tuple[list[str], frozenset[str]]]:
    table = []
    for line in _MEANINGS.replace("\n    ", " ").strip().splitlines():
        ours, words = (side.split() for side in line.split(":"))
        table.append((ours, frozenset([*ours, *words])))
    return table + [([f"trainer.{name}"], frozenset([f"trainer.{name}", name])) for name in _KNOBS.split()]


_TABLE = _table()


def same_meaning(key: str, known: Callable[[str], bool], *, beside: Container[str] = (), most: int = 2) -> list[str]:
    """Known keys that mean what a word means elsewhere, best first; the whole word goes before its last part.

    Args:
        key: As typed: `policy.path`, `num_episodes`, `learning-rate`.
        known: Whether the command has a key.
        beside: Names of the section that the key is in, which go before those of others.
        most: How many are wanted.
    """
    section, _, last = key.lower().lstrip("-").replace("-", "_").rpartition(".")
    whole = f"{section}.{last}" if section else last
    for word, holds in ((whole, known), (last, beside.__contains__), (last, known)):
        found = [ours for keys, words in _TABLE if word in words for ours in keys if ours != key and holds(ours)]
        if found:
            start = f"{section}." if holds is not known else ""
            return [start + ours for ours in dict.fromkeys(found)][:most]
    return []
