"""Layers of every kind, models that hold their own parameters, and their scores by definition."""

import torch
import zoo
from torch import nn
from torch.nn import functional as F

from gradmimic import mimic_scores

WIDTH = 4


def words(*shape):
    return lambda b: torch.randint(7, (b, *shape))


def numbers(*shape):
    return lambda b: torch.randn(b, *shape, dtype=torch.float64)


class Sine(nn.Module):
    """Not linear in its parameters."""

    def __init__(self):
        super().__init__()
        self.frequency, self.unused = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))

    def forward(self, x):
        return torch.sin(x * self.frequency) + torch.tanh(self.frequency).sum()


class Scale(nn.Module):
    def __init__(self, shape=(3,), *, in_place=False):
        super().__init__()
        self.gamma, self.in_place = nn.Parameter(torch.randn(shape)), in_place

    def forward(self, x):
        return (x + 0).sub_(self.gamma) if self.in_place else self.gamma * x


class RootMeanSquare(nn.Module):
    """As Hugging Face's models write it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x):
        wide = x.to(torch.float64)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Twisted(nn.Module):
    """Parameters that are transposed, cut, gated and normalized before data meets them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6))
        self.gate, self.shift = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(1, 3))

    def forward(self, x):
        left, right = self.weight.T.chunk(2)  # [3, 3] each
        x = x @ left + F.linear(x, F.normalize(right, dim=1)) * self.gate.tanh()
        x += self.shift
        return torch.cat([x, self.shift.expand(len(x), -1)], 1)[:, 1:4]


class First(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Attention(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, **given)
        self.need = given.pop("need", False)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Crossed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 3, 4))

    def forward(self, x):
        return self.layer(self.query.expand(len(x), -1, -1), x, x)[0]


def _batch_norm(layer):
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer.eval()


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), numbers(3)),
    "linear-no-bias": (lambda: nn.Linear(3, 4, bias=False), numbers(5, 3)),
    "bilinear": (lambda: _Pair(nn.Bilinear(3, 3, 4)), numbers(3)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, padding=1), numbers(2, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 4, 3, stride=2, groups=2), numbers(4, 6, 6)),
    "conv2d-same": (lambda: nn.Conv2d(2, 4, 3, padding="same", dilation=2), numbers(2, 6, 6)),
    "conv2d-reflect": (
        lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), numbers(2, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, bias=False), numbers(1, 3, 3, 3)),
    "conv-transpose1d": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2), numbers(2, 4)),
    "conv-transpose2d": (
        lambda: nn.ConvTranspose2d(4, 2, 3, groups=2, output_padding=1, stride=2),
        numbers(4, 3, 3)),
    "conv-transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2), numbers(1, 2, 2, 2)),
    "embedding": (lambda: nn.Embedding(7, 3), words(5)),
    "embedding-padding": (lambda: nn.Embedding(7, 3, padding_idx=-2), words(5)),
    "embedding-max-norm": (lambda: nn.Embedding(7, 3, max_norm=100.0), words(5)),
    "embedding-by-frequency": (lambda: nn.Embedding(7, 3, scale_grad_by_freq=True), words(5)),
    "embedding-bag": (lambda: nn.EmbeddingBag(7, 3, mode="sum", padding_idx=1), words(5)),
    "embedding-bag-mean": (lambda: nn.EmbeddingBag(7, 3), words(5)),
    "layer-norm": (lambda: nn.LayerNorm((5, 3)), numbers(2, 5, 3)),
    "layer-norm-no-bias": (lambda: nn.LayerNorm(3, bias=False), numbers(5, 3)),
    "group-norm": (lambda: nn.GroupNorm(2, 4), numbers(4, 3, 3)),
    "instance-norm": (
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), numbers(3, 3, 3)),
    "rms-norm": (lambda: nn.RMSNorm(3), numbers(5, 3)),
    "rms-norm-by-hand": (RootMeanSquare, numbers(5, 3)),
    "batch-norm1d": (lambda: _batch_norm(nn.BatchNorm1d(3)), numbers(3)),
    "batch-norm2d": (lambda: _batch_norm(nn.BatchNorm2d(3)), numbers(3, 4, 4)),
    "batch-norm3d": (lambda: _batch_norm(nn.BatchNorm3d(1)), numbers(1, 2, 2, 2)),
    "prelu": (lambda: nn.PReLU(3), numbers(3, 4)),
    "scale": (Scale, numbers(5, 3)),
    "scale-channels": (lambda: Scale((3, 1, 1)), numbers(3, 2, 2)),
    "shift-in-place": (lambda: Scale(in_place=True), numbers(5, 3)),
    "sine": (Sine, numbers(3)),
    "twisted": (Twisted, numbers(3)),
    "weight-norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), numbers(3)),
    "lstm": (lambda: First(nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True)), numbers(5, 3)),
    "gru-time-first": (lambda: _TimeFirst(First(nn.GRU(3, 4))), numbers(5, 3)),
    "gru-cell": (lambda: nn.GRUCell(3, 4), numbers(3)),
    "attention": (lambda: Attention(batch_first=True), numbers(5, 4)),
    "attention-time-first": (lambda: _TimeFirst(Attention()), numbers(5, 4)),
    "attention-odd": (
        lambda: Attention(batch_first=True, add_bias_kv=True, add_zero_attn=True), numbers(5, 4)),
    "attention-crossed": (Crossed, numbers(5, 4)),
}  # fmt: skip


class _Pair(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x.flip(-1))


class _TimeFirst(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Around(nn.Module):
    """A layer between others, twice where its output can be its input."""

    def __init__(self, layer, x):
        super().__init__()
        self.layer = layer
        self.below = nn.Linear(x.shape[-1], x.shape[-1]) if x.is_floating_point() else None
        with torch.no_grad():
            z = layer.double()(x)
        self.twice = z.shape == x.shape and x.is_floating_point()
        self.head = nn.Linear(z[0].numel(), WIDTH)
        self.double()

    def forward(self, x):
        x = x if self.below is None else torch.tanh(self.below(x))
        for _ in range(1 + self.twice):
            x = F.relu(self.layer(x), inplace=True) + 0.1
        return self.head(x.flatten(1))


def losses_of(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def around(kind, b, seed=0):
    torch.manual_seed(seed)
    layer, inputs = LAYERS[kind]
    model = Around(layer(), inputs(2))
    batch = inputs(b), torch.randint(WIDTH, (b,))
    return model, zoo.nearby(model), batch


def assert_scores(model, reference, batch, losses=losses_of, tolerance=1e-9, **given):
    expected = mimic_scores(model, reference, batch, losses, engine="oracle", **given)
    actual = mimic_scores(model, reference, batch, losses, engine="ghost", **given)
    scale = float(expected.abs().max()) + 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


class Residual(nn.Module):
    def __init__(self, c, norm):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, c, 3, padding=1, bias=False), norm(c)
        self.conv2, self.norm2 = nn.Conv2d(c, c, 3, padding=1, bias=False), norm(c)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


def resnet(norm):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(inplace=True), Residual(4, norm), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, WIDTH),
    )  # fmt: skip


class Vision(nn.Module):
    """A class token, position embeddings and layer scales, held by modules that hold others."""

    def __init__(self, d=8):
        super().__init__()
        self.patch = nn.Conv2d(3, d, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, d))
        self.position = nn.Parameter(torch.randn(1, 5, d))
        self.scale = nn.Parameter(torch.rand(d))
        self.block = nn.TransformerEncoderLayer(d, 2, 16, dropout=0.0, batch_first=True)
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, WIDTH)

    def forward(self, images):  # [b, 3, 4, 4]
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x + self.scale * self.block(x)
        return self.head(self.norm(x)[:, 0])


class Decoder(nn.Module):
    """As nanoGPT writes it: position embeddings without a batch axis, a tied head."""

    def __init__(self, d=6, words=7):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, d), nn.Embedding(9, d)
        self.block = nn.TransformerEncoderLayer(d, 2, 12, dropout=0.0, batch_first=True)
        self.lm_head = nn.Linear(d, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        t = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(t, dtype=self.wte.weight.dtype)
        x = self.wte(ids) + self.wpe(torch.arange(t))
        return self.lm_head(self.block(x, mask))


def next_word(model, ids):
    z = model(ids[:, :-1])
    z = z if isinstance(z, torch.Tensor) else z.logits
    flat = F.cross_entropy(z.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.view(len(ids), -1).mean(1)
