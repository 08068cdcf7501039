from vlp.train.distributed import *  # temporary
from vlp.train.distributed import World, sum_over_ranks, gather_lists, barrier, world
