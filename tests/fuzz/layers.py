"""Lines that belong to images, vectors and normalisation, and those that must be refused or bounded with care."""

IMAGES = """
`nn.Conv{r}d({ch}, {i}, {k}, stride={s}, padding={o}, dilation={s})`(x)
`nn.Conv{r}d({ch}, {ch}, {k}, groups={ch}, padding={o}, bias=False)`(x)
`nn.Conv{r}d({ch}, 2, {k}, padding="same", dilation={s})`(x)
`nn.Conv{r}d({ch}, 2, 3, padding=1, padding_mode="circular")`(x)
`nn.Conv{r}d({ch}, {ch}, 3, padding=1, padding_mode="reflect")`(x)
x + `nn.Conv{r}d({ch}, {ch}, 3, padding=1)`({f})
`parametrizations.weight_norm(nn.Conv{r}d({ch}, 2, {k}))`(x)
`parametrizations.spectral_norm(nn.Conv{r}d({ch}, 2, {k}))`(x)
F.conv{r}d(x, `torch.randn(2, {ch}, *[2] * {r})` * {n}, None, {s})
torch.conv{r}d(x, `torch.randn(1, {ch}, *[1] * {r})`)
`nn.ConvTranspose{r}d({ch}, 2, {k}, stride={s}, padding={o}, dilation={s})`(x)
`nn.ConvTranspose{r}d({ch}, {ch}, {k}, stride=2, output_padding=1, groups={ch})`(x)
torch.convolution(x, `torch.randn(2, {ch}, *[2] * {r})`, None, [1] * {r}, [1] * {r}, [1] * {r}, False, [0] * {r}, 1)
F.avg_pool{r}d(x, {k}, {s}, {o}, {b}, {b})
F.avg_pool{r}d(x, 3, 2, 1, True, {b})
F.avg_pool2d(x, 2, 1, divisor_override=3)
F.max_pool{r}d(x, {k}, {s}, {o}, {s}, {b})
F.max_pool{r}d(x, 3, 2, 1, ceil_mode=True)
F.max_pool{r}d(x, 2, 1, return_indices=True)[0]
F.lp_pool{r}d(x, 2, {k}, {s})
`nn.LPPool{r}d(2, 2)`(x)
F.adaptive_avg_pool{r}d(x, {i})
F.adaptive_max_pool{r}d(x, {i})
F.adaptive_avg_pool{r}d(x, 1).flatten(1)
F.interpolate(x, scale_factor=2)
F.interpolate(x, size=[3] * {r})
F.interpolate(x, scale_factor=1.7, mode="nearest-exact")
F.interpolate(x, size=[{k}] * {r}, mode="nearest-exact")
F.interpolate(x, scale_factor=1.7, mode={linear}, align_corners={b})
F.interpolate(x, size=[{i}] * {r}, mode={linear}, align_corners={b})
F.interpolate(x, scale_factor={p}, mode={linear}, recompute_scale_factor={b})
`stirred(nn.BatchNorm{r}d({ch}, eps={p}))`(x)
`nn.InstanceNorm{r}d({ch}, affine=True)`(x)
`stirred(nn.InstanceNorm{r}d({ch}, track_running_stats=True))`(x)
`nn.ZeroPad{r}d(1)`(x)
`nn.ConstantPad{r}d((1, 0), {n})`(x)
`nn.ReplicationPad{r}d(1)`(x)
`nn.CircularPad{r}d(1)`(x)
torch.cat([F.max_pool{r}d(x, 2, 1), F.avg_pool{r}d(x, 2, 1)], 1)
x + F.interpolate(F.avg_pool{r}d(x, 2), size=x.shape[2:])
x - F.avg_pool{r}d(x, 3, 1, 1)
"""

NORMS = """
`stirred(nn.BatchNorm1d({ch}))`(x)
`stirred(nn.BatchNorm1d({ch}, affine=False, eps=1e-3))`(x)
F.batch_norm(x, {stat}, {stat}.abs() + 0.1, None, None, False, 0.1, {p})
`stirred(nn.LayerNorm({last}))`(x)
F.layer_norm(x, x.shape[-1:], eps={p})
F.layer_norm(x, x.shape[1:], None, None, {p})
`nn.LayerNorm({last}, eps={p}, elementwise_affine=False)`(x)
`stirred(nn.RMSNorm({last}, eps={p}))`(x)
F.rms_norm(x, x.shape[-1:], None, {p})
`stirred(nn.GroupNorm(1, {ch}))`(x)
F.group_norm(x, x.shape[1], eps={p})
F.instance_norm(x, eps={p})
`nn.Softmax({d})`(x)
F.softmax(x * {n}, {d})
F.softmin(x, {d})
F.log_softmax(x, {d})
`nn.LogSoftmax(1)`(x)
torch.logsumexp(x, {d}, keepdim={b})
torch.logsumexp(x, {d})[..., None]
x.amax({d}, keepdim=True)
x.amin({d}, keepdim=True) - {n} * x
x.max({d}).values[..., None]
x.min({d}, keepdim=True)[0]
x.max({d})[0] + {n}
x.sort({d}).values
torch.sort(x, {d}, descending={b}, stable={b})[0]
x.topk(1, {d}).values
x.topk(2, {d}, largest={b})[0]
torch.linalg.vector_norm(x, dim={d})[..., None]
x.norm(dim={d}, keepdim={b})
x.norm(2, dim={d}, keepdim=True)
torch.linalg.norm(x, dim={d}, keepdim=True)
x - x.amax(1, keepdim=True)
x * {n} - torch.logsumexp(x, {d}, keepdim=True)
"""

BY_HAND = """
x * torch.sigmoid({p} * x)
x * F.relu6(x + 3) / 6
x * F.hardsigmoid(x)
torch.where(x > 0, x, {n} * x)
torch.where(x < 0, {n} * x, x)
x * (x > 0)
(x > 0).to(x.dtype) * x
x.masked_fill(x < 0, 0)
torch.log(1 + torch.exp(x))
torch.log1p(x.exp())
torch.exp(-F.relu(x))
torch.sqrt(x * x + {p})
torch.sqrt(F.avg_pool1d(x ** 2, 2) + 1e-3)
F.lp_pool1d(x, 2, 2)
x / (1 + x.abs())
x / torch.sqrt(1 + x * x)
x / x.norm(dim=-1, keepdim=True).clamp(min={p})
F.normalize(x, dim={d})
torch.where(x.abs() < {p}, x, {p} * torch.sign(x))
0.5 * x * (1 + torch.tanh({p} * (x + 0.044715 * x ** 3)))
x * 0.5 * (1.0 + torch.erf(x / 2 ** 0.5))
torch.where(x > {n}, x - {n}, 0.0)
(x.abs() + x) / 2
torch.exp(x - x.amax({d}, keepdim=True))
F.gumbel_softmax(x, dim={d})
torch.logaddexp(x, {f})
torch.hypot(x, {f})
F.huber_loss(x, torch.zeros_like(x), reduction="none")
"""

HOSTILE = """
x.half().to(x.dtype)
torch.zeros(x.shape, dtype=torch.float32).copy_(x)
x.bfloat16().to(x.dtype)
x.float().to(x.dtype)
x.to(torch.float8_e4m3fn).to(x.dtype)
(x * {n}).int().to(x.dtype)
x.long().to(x.dtype) + x
x + (x > {n})
x.bool() + x
x + x.to(torch.uint8)
torch.empty(x.shape, dtype=torch.float16).copy_(x).to(x.dtype)
torch.zeros(x.shape, dtype=torch.int32).copy_(x).to(x.dtype)
x.sum({d}, keepdim=True, dtype=torch.float16).to(x.dtype)
torch.softmax(x, {d}, dtype=torch.bfloat16).to(x.dtype)
x.type_as(torch.zeros(1, dtype=torch.float16)).to(x.dtype)
x.view(torch.int16).view(x.dtype)
torch.round(x)
x.floor() - x
torch.sign(x) * {p}
x // 1
x % {p}
torch.fmod(x, {n})
x * {f}
x ** 2
torch.exp(x)
torch.sqrt(x.abs())
x / (1 + {f})
x @ x.transpose(-1, -2)
x.sort({d}).indices.to(x.dtype)
x.argmax({d}, keepdim=True) + x
x.topk(1, {d}, sorted=False)[0]
F.hardshrink(x, {p})
F.threshold(x, {n}, {n})
F.softplus(x, 1, {i})
x * x[:, :1].detach()
x.cummax({d})[0]
x.median({d}, keepdim=True)[0]
x.kthvalue(1, {d})[0]
x.prod({d})
torch.quantile(x, 0.3, dim={d})
x * float(x.shape[0])
x + x.mean(0)
x.roll(1, 0)
x + x[:1]
x * len(x)
torch.flipud(x)
x.flatten(0, 1)
F.dropout(x, 0.3)
x + torch.rand(1)
x * x.flatten()[0].item()
x * 1e300 * 1e300
x * float("nan")
torch.where(x > 0, {n}, x)
torch.nan_to_num(x)
x.unique()
torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)
x.data.numpy()
F.glu(x, {d})
torch.bucketize(x, torch.tensor([0.0])).to(x.dtype)
F.bilinear(x, x, `torch.randn(1, {last}, {last})`)
x.expm1()
F.layer_norm(x, x.shape[-1:], eps=0.0)
F.elu(x, 1.0) if x.sum() > 0 else x
torch.polar(x, x).real
torch.view_as_real(torch.complex(x, x)).sum(-1)
torch.fft.rfft(x).abs()
"""
