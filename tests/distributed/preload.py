"""What the server that ranks are forked from imports once."""

import gc
import importlib
import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

for name in (
    "vlp.train.trainer",
    "torch.utils.tensorboard",
    # What DeepSpeed's first engine would import in every rank: 7 s.
    "torch._dynamo",
    "deepspeed.runtime.zero.muon.muon_optimizer",
):
    importlib.import_module(name)

gc.freeze()  # a collection after each test then takes milliseconds instead of half a second
