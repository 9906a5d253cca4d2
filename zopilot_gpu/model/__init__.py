"""Mixtral: tensors in, tensors out. Knows the mathematics and the formats of weights; no text, no requests, no files.

The shapes of this package:

    T  tokens of a batch          d  hidden size            E  experts
    S  sequences of a batch       f  intermediate size      k  experts a token
    R  rows of logits             H  heads                  B  blocks of the KV pool
    V  vocabulary                 K  KV heads               N  tokens a block
                                  h  head size
"""
