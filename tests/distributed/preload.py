"""What the server that ranks are forked from imports once."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

import vlp.train.engine
from vlp.train.quiet import import_deepspeed

import_deepspeed()
torch.set_num_threads(1)
