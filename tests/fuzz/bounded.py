"""Lines of what is Lipschitz on bounded values only, of recurrent layers, and of writes at known positions."""

BOUNDED = """
x.tanh() * torch.sigmoid({f})
torch.sigmoid(x) * h.sin()
F.glu(x.tanh(), {d})
x.sigmoid() * x.softmax({d}) - x.clamp(-{p}, {p}) * {f}.tanh()
torch.sigmoid(x).square() + x.sin() * x.sin()
x.tanh() ** {i} + x.sigmoid().pow(2)
(x.abs() + {p}) ** -0.5
x.tanh() / (x.abs() + {p})
torch.reciprocal(x.relu() + {p})
torch.exp(-x.abs()) * {n}
torch.expm1(-x.relu())
torch.sinh(x.clamp(-{p}, {p}))
torch.log(x.abs() + {p})
torch.log1p(F.softplus(x))
torch.sqrt(x.relu() + {p})
torch.rsqrt(x.abs() + {p})
x.softmax({d}) * torch.full_like(x, 0.3).tanh() * x.tanh()
"""

RECURRENT = """
`nn.RNN({last}, 2, batch_first=True)`(x)[0]
`nn.RNN({last}, 2, nonlinearity="relu", bias=False)`(x.transpose(0, 1))[1].transpose(0, 1)
`nn.GRU({last}, 2, batch_first=True, bidirectional=True)`(x)[0]
`nn.LSTM({last}, 2, batch_first=True)`(x)[0]
`nn.RNNCell({last}, 2)`(x)
`nn.RNNCell({last}, 2, nonlinearity="relu")`(x)
`nn.GRUCell({last}, 2)`(x)
`nn.LSTMCell({last}, 2)`(x)[1]
"""

SCATTERED = """
x.index_add({d}, torch.tensor([0, 0]), {n} * x.narrow({d}, 0, 2), alpha={n})
torch.zeros(len(x), 2, *x.shape[2:]).index_add(1, torch.zeros(x.shape[1], dtype=torch.long), x)
x.scatter_add({d}, torch.zeros_like(x, dtype=torch.long), {f})
x.scatter_reduce({d}, torch.zeros_like(x, dtype=torch.long), x, "sum")
x.scatter(1, torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.long), {n} * x[:, -1:])
x.index_copy({d}, torch.tensor([0]), x.narrow({d}, -1, 1) * {n})
x.index_put((torch.arange(len(x))[:, None], torch.tensor([[0, 1]])), x[:, :2].flip(1))
x.index_put((torch.arange(len(x))[:, None], torch.tensor([[0, 0]])), x[:, :2], accumulate=True)
"""
