"""The network: embeddings, one encoder for every family, poolers and heads, all built from a config.

What differs between families is said in `configs/model/*.yaml`; nothing here knows a family.
"""
