"""Debug."""
import torch, sys, glob
from benchmarks.kernels import *
device=torch.device("cuda")
torch.manual_seed(0)
w13, w2 = weight((E, 2 * 512, 512), "bf16", device), weight((E, 512, 512), "bf16", device)
x, logits = torch.randn(2, 512, device=device).bfloat16(), torch.randn(2, E, device=device)
shape=Shape(1,1,8,1)
routing, plain = route(logits, K, 8 * shape.q), plain_route(logits, K, 8 * shape.q)
torch.cuda.synchronize()
print(routing, plain)
t13,t2=tile(w13),tile(w2)
h = launch.gate_up(t13, x, routing, K, shape)
torch.cuda.synchronize()
print(h.float().norm())
