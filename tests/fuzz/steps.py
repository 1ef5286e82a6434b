"""The lines that random programs are made of, as text: ``x`` is what the lines before left, ``h`` an earlier ``x``.

In braces stands what is drawn anew every time (see ``draw.Draw``); in backticks a module or parameter that the program
keeps. A line that does not run on what it meets is not taken, so a line need not say which shapes it is for.
"""

POINTWISE = """
torch.relu({x})
{x}.relu()
F.relu6({x})
F.hardtanh({x}, -{p}, {p})
F.leaky_relu({x}, {n})
F.elu({x}, {n})
F.selu({x})
F.celu({x}, {p})
F.rrelu({x}, 1e-3, 0.3)
F.gelu({x})
F.gelu({x}, approximate="tanh")
F.silu({x})
F.mish({x})
F.hardswish({x})
F.hardsigmoid({x})
F.softplus({x})
F.softplus({x}, {p}, 40)
F.softplus({x}, beta={n}, threshold=60)
F.softsign({x})
F.tanhshrink({x})
F.softshrink({x}, {p})
F.hardshrink({x}, 0.0)
F.threshold({x}, 0.3, 0.3)
F.logsigmoid({x})
torch.tanh({x})
torch.sigmoid({x})
torch.special.expit({x})
torch.special.erf({x})
torch.erf({x})
torch.sin({x})
torch.cos({x})
torch.atan({x})
torch.arctan({x})
torch.abs({x})
{x}.clamp(-{p}, {p})
{x}.clamp(min={n})
{x}.clamp(max={n})
torch.clip({x}, {n}, {n})
torch.clamp({x}, {w}, {w})
torch.clamp_min({x}, {n})
torch.clamp_max({x}, {n})
torch.maximum({x}, {w})
torch.minimum(torch.tensor(0.3), {x})
torch.max({x}, {w})
{x} * torch.sigmoid({x})
torch.tanh(F.softplus({x})) * {x}
{x} * torch.sigmoid({n} * {x})
{x} * torch.sigmoid({x} * {w})
torch.where({x} > 0, {x}, {n} * {x})
torch.where({x} > 0, {x}, {w} * {x})
{x} * 0.5 * (1 + torch.erf({x} / {p}))
0.5 * ({x} * (1 + torch.erf({w} * {x})))
0.5 * {x} * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * ({x} + 0.044715 * torch.pow({x}, 3.0))))
{x} + torch.sin({n} * {x}) ** 2
torch.cos({x}).square() * {n}
torch.sqrt({x} ** 2 + {p})
{x} / {x}.norm(dim={d}, keepdim=True).clamp_min({p})
F.normalize({x}, eps={p})
-{x}
torch.negative({x})
torch.positive({x})
F.prelu({x}, `torch.randn(1)`)
`nn.PReLU({ch})`({x})
`nn.Dropout(0.3)`({x})
F.dropout({x}, 0.3, training=self.training)
F.alpha_dropout({x}, 0.3, training=self.training)
F.feature_alpha_dropout({x}, 0.3, training=self.training)
`nn.Dropout1d(0.3)`({x})
`nn.Hardtanh(-{p}, {p})`({x})
`nn.LeakyReLU({n}, inplace=True)`({x} * 1)
{x} * {n}
{n} * {x}
{x} / {n}
{n} - {x}
{x} * {w}
{x} / ({w}.abs() + {p})
"""

ARITHMETIC = """
x + {n}
x - {w}
x + {f}
x - {n} * {f}
{n} * {f} + {n} * x
x * {i} / 7
x * True
x ** 1
x.pow(1.0)
torch.multiply(x, {w})
torch.divide(x, {n})
torch.true_divide({f}, {n})
torch.subtract({f}, x)
torch.add(x, {w}, alpha={n})
torch.add({w}, x, alpha={n})
torch.sub(x, {f}, alpha={n})
torch.rsub(x, {f}, alpha={n})
torch.lerp(x, {f}, {n})
torch.lerp(x, {w}, {w})
torch.lerp({w}, {w}, x)
torch.addcmul(x, {f}, {w}, value={n})
torch.addcdiv({w} + x, x, {w}.abs() + 1, value={n})
torch.maximum(x, {n} * {f})
torch.minimum(x, x.flip({d}))
torch.maximum(h, x)
torch.max(x, {f})
x + h
x - {n} * h
h.sub(x, alpha={n})
x * torch.full_like(x, {n})
torch.ones_like(x) - x + torch.zeros_like(x)
x * x.new_full((), {n}) + x.new_ones(x.shape)
x + x.new_zeros(x.shape)
x.clone().fill_({n}) - x
x.new_empty(x.shape).copy_(x) * {n}
torch.where({mask}, x, {n})
torch.where({mask}, {f}, x)
torch.where({mask}, {n}, {f})
x.masked_fill({mask}, {n})
x * x.shape[1] / {i}
x * (x.numel() // len(x)) / {i}
x - x.mean({d}, keepdim=True)
x.sum({d}, keepdim=True) + x
x * torch.tensor({n}) + torch.full((x.shape[-1],), {n})
x * torch.tensor({n}, dtype=torch.float64).to(x.dtype)
"""

MATRIX = """
`nn.Linear({last}, {i})`(x)
`nn.Linear({last}, {last}, bias=False)`(x) + x
x + {n} * `nn.Linear({last}, {last})`({f})
`parametrizations.weight_norm(nn.Linear({last}, {i}))`(x)
`parametrizations.spectral_norm(nn.Linear({last}, {last}))`(x)
`parametrizations.orthogonal(nn.Linear({last}, {last}))`(x)
F.linear(x, `torch.randn({i}, {last})` * {n}, `torch.randn({i})`.sum() + {n})
F.linear(x, `torch.randn({last}, {last})`.T / {n})
x @ `torch.randn({last}, {i})`
x.matmul(`torch.randn({last})`)[..., None]
`torch.randn({i}, {second})` @ x
torch.mm(x, `torch.randn({last}, {i})`)
torch.mv(x, `torch.randn({last})`)[:, None]
torch.addmm(`torch.randn(2)`, x, `torch.randn({last}, 2)`, beta={n}, alpha={n})
torch.addmm(x, x, `torch.randn({last}, {last})`, beta={n}, alpha={n})
torch.einsum("bi,oi->bo", x, `torch.randn({i}, {last})`)
torch.einsum("btf,ot->bof", x, `torch.randn({i}, {ch})`)
torch.einsum("io,bci->bco", `torch.randn({last}, {i})`, x)
x.sum({d})
x.mean({d}, keepdim=True)
x.cumsum({d})
x.flatten(1).sum(1, keepdim=True)
x.mean(dim=-1, keepdim=True) * {w}
"""

SHAPE = """
x.flatten(1)
x.unsqueeze({d})
x.squeeze()
x.squeeze({d})
x.reshape(len(x), -1, x.shape[1])
x.reshape(x.shape[0], -1)
x.view(x.size(0), -1)
x.reshape(len(x), 2, -1)
x.unflatten(1, (-1, 1))
x.unflatten(-1, (2, -1))
`nn.Unflatten(1, (2, -1))`(x)
x.permute(0, *range(x.ndim - 1, 0, -1))
x.transpose({d}, {d})
x.transpose(0, 1).{g}.transpose(0, 1)
x.mT
x.T.T * {n}
x.t().tanh().t()
x.movedim(1, -1)
torch.moveaxis(x, -1, 1)
x.swapaxes({d}, -1)
x.swapdims({d}, 1)
x.narrow({d}, 0, 1)
x.narrow(1, 1, x.shape[1] - 1)
x[:, :2]
x[..., 1:]
x[:, ::2]
x[:, [0, -1]]
x[:, torch.tensor([0, 0, x.shape[1] - 1])]
x[:, 0]
x[:, None]
x.select({d}, -1)
x.index_select({d}, torch.tensor([0, 0]))
x.gather({d}, torch.zeros_like(x, dtype=torch.long))
torch.take_along_dim(x, torch.zeros_like(x, dtype=torch.long), {d})
x.unsqueeze(1).expand(-1, 2, *x.shape[1:])
x.broadcast_to(x.shape)
x.expand_as(x)
torch.broadcast_tensors(x, x.mean(-1, keepdim=True))[1]
x.repeat(1, 2, *[1] * (x.ndim - 2))
x.tile(2)
x.repeat_interleave(2, {d})
x.flip({d})
torch.fliplr(x)
x.T.flipud().T
x.roll({i}, {d})
x.rot90(1, (1, 2))
x.diagonal(0, 1, 2)
torch.stack([x, {f}], {d})
torch.cat([x, {f}], {d})
torch.cat([h, x], {d})
torch.concat([{f}, x, {n} * x], {d})
torch.concatenate([x, {f}], {d})
torch.cat([x, torch.full_like(x, {n})], {d})
torch.cat([x, torch.ones(len(x), 1, *x.shape[2:])], 1)
torch.cat(x.chunk(2, {d})[::-1], {d})
x.split(1, {d})[-1]
torch.cat(x.split([1, x.shape[1] - 1], 1)[::-1], 1)
x.tensor_split(2, {d})[0]
torch.stack(x.unbind({d})[::-1], {d})
x.unfold({d}, 2, 1)
x.unfold(1, 2, 2).sum(-1)
x.as_strided(x.shape, x.stride())
x.flatten(1).as_strided((len(x), 2, 2), (x[0].numel(), 1, 1))
F.pad(x, (1, 2), value={n})
F.pad(x, (-1, 1))
F.pad(x, (1, 1), mode="reflect")
F.pad(x, (1, 2), mode="replicate")
F.pad(x, (1, 1), mode="circular")
F.pad(x, (1, 0, 1, 1), mode="circular")
x.ravel().view(len(x), -1)
x.transpose(1, -1).contiguous()
x.clone()
x.detach() + {n} * x
torch.atleast_1d(x) + torch.atleast_2d(x)
torch.atleast_3d(x)
`nn.ChannelShuffle(2)`(x)
F.pixel_shuffle(x, 2)
F.pixel_unshuffle(x, 2)
x.view_as(h)
x.reshape_as(h)
x.real
x.conj().resolve_conj().resolve_neg()
"""

CASTS = """
x.double().to(x.dtype)
x.to(torch.float64).to(torch.{work})
x.to(torch.{work})
x.type_as({kept})
x.to({kept})
(x.double() * {n}).to(torch.{work})
x.type(torch.float64).{g}.type(torch.{work})
x * torch.arange(x.shape[-1])
x * torch.tensor([True]) + torch.tensor({i})
x + torch.zeros(x.shape[1:], dtype=torch.float64)
torch.zeros(x.shape, dtype=x.dtype).copy_(x)
torch.softmax(x, {d}, dtype=torch.float64)
x.sum({d}, keepdim=True, dtype=torch.float64)
x.cumsum({d}, dtype=torch.float64).to(torch.{work})
"""

IN_PLACE = """
x = x.clone(); x[:, 0] = {n}
x = x * 1; x[:, 0] = x[:, -1] * {n}
x = x.clone(); x[:, :1] += {n} * x[:, -1:]
x = x.clone(); x[:, 1:] = {g_of_tail}
x = x * {n}; x.relu_()
x = x.clone(); x.mul_({n}).add_({n})
x = x + 0; x.add_({f}, alpha={n})
x = x + 0; x.sub_({w}, alpha={n}); x.div_({n}); x.neg_()
x = x.clone(); x.clamp_(-{p}, {p})
x = x.clone(); x.transpose(1, -1).mul_({n})
x = x.clone(); x.view(len(x), -1)[:, 0].zero_()
x = x.clone(); x.flatten(1)[:, :1].copy_({n} * x.flatten(1)[:, -1:])
x = x.clone(); x.masked_fill_({mask}, {n})
x = x.clone(); x.diagonal(0, 1, 2).mul_({n})
x = x.clone(); x.diagonal(0, 1, 2).copy_(x.select(1, 0)[:, :1])
x = x.clone(); x.select(1, 0).fill_({n})
x = x.clone(); x[:, 0].tanh_()
x = x.clone(); x.tanh_(); F.relu_(x)
x = x.clone(); x.index_fill_(1, torch.tensor([0]), {n})
x = x.clone(); x.abs_(); x.sigmoid_()
y = x.clone(); y.mul_({n}); x = x - y
y = x.view(len(x), -1); x = x * {n} + 0 * x; x.view(len(x), -1).add_(y)
x.mul_({n})
x.relu_()
x[:, 0] = {n}
y = torch.zeros_like(x); y[:, :1] = x[:, -1:]; x = x + y
y = torch.zeros(len(x), x.shape[-1], dtype=torch.{work}); y[:, :1] = x.flatten(1)[:, :1]; x = y
y = torch.empty_like(x); y.copy_(x * {n}); x = y
x = x.clone(); x.transpose(1, -1)[:, 0] = 0; x = x.relu_().reshape(len(x), -1)
"""
