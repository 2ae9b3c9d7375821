"""Train the shipped adapter: a few steps of DPO with LoRA from the shipped policy. Needs the other assets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ASSETS = Path(__file__).parents[2] / "src" / "nemotron" / "assets" / "tiny_world"
LORA = "policy.dtensor_cfg.lora_cfg"


def main() -> None:
    """Overwrite ``adapter`` in the assets."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["policy.dtensor_cfg.enabled=true", f"{LORA}.enabled=true", f"{LORA}.dim=2", f"{LORA}.alpha=4"]
        words += [f"{LORA}.target_modules=[q_proj,v_proj]", "dpo.max_num_steps=8", "policy.train_global_batch_size=16"]
        words += ["policy.train_micro_batch_size=16", "dpo.val_period=0", "dpo.val_at_start=false", "eval.heldout=null"]
        words += ["checkpointing.metric_name=null", "checkpointing.save_period=8"]
        argv = [sys.executable, "-m", "nemotron", "steps", "run", "rl/nemo_rl/dpo", "-c", "tiny", "--runs-dir", folder]
        subprocess.run([*argv, *words], check=True)
        [made] = Path(folder).glob("*/checkpoints/step_8/policy/adapter")
        shutil.rmtree(ASSETS / "adapter", ignore_errors=True)
        (ASSETS / "adapter").mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(made / file, ASSETS / "adapter" / file)
    path = ASSETS / "adapter" / "adapter_config.json"
    # The folder in which it was made is nobody else's.
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}, indent=2) + "\n")


if __name__ == "__main__":
    main()
