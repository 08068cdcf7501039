from vlp.train.distributed import *  # temporary
