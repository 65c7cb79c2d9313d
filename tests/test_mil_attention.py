"""Attention: against torchmil, torch's own Transformer, and TransMIL written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_heads import Weights, bags_of, embedded, linear, make, softmax, weights_of
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from pathgen.models.mil.attention import AttentionScore, GatedAttentionScore
from pathgen.models.mil.nystrom import pseudo_inverse, segment_means
from pathgen.models.mil.packed import Packed

Array = NDArray[np.float64]


# --- ABMIL ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("gated", [True, False])
def test_attention_is_torchmils(gated: bool) -> None:
    from torchmil.nn import AttentionPool as Oracle

    torch.manual_seed(0)
    ours = (GatedAttentionScore if gated else AttentionScore)(8, 12)
    oracle = Oracle(in_dim=8, att_dim=12, gated=gated)
    pairs: list[tuple[Any, Any]] = [(oracle.fc1, ours.content), (oracle.fc2, ours.weight)]
    if gated:
        pairs.append((oracle.fc_gated, ours.gate))
    for theirs, own in pairs:
        getattr(theirs, "module", theirs).load_state_dict(own.state_dict())
    bags, mask = bags_of([9, 4], dim=8)
    packed = Packed.of(bags, mask)
    attention = packed.softmax(ours(packed.vectors))
    vector = packed.weighted(attention, packed.vectors).squeeze(1)
    want, scores = oracle(bags, mask, return_att=True)
    torch.testing.assert_close(vector, want, rtol=1e-5, atol=1e-6)
    want_attention = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    seen = packed.spread(attention).squeeze(-1)
    torch.testing.assert_close(seen, want_attention, rtol=1e-5, atol=1e-6)


class _Made(TorchFunctionMode):
    """How many values were written into new memory, in tensors as large as a bag."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.copies = size, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == self.size and not out._is_view():
            given = [a.data_ptr() for a in args if isinstance(a, torch.Tensor)]
            self.copies += out.data_ptr() not in given
        return out


@pytest.mark.parametrize("name", ["abmil", "mean", "clam-sb"])
def test_a_bag_is_copied_once(name: str) -> None:
    """The standardized features; and those that are there, where some of the batch is padding."""
    head = make(name, embed=4)
    for lengths, copies in (([40, 40], 1), ([40, 31], 2)):
        bags, mask = bags_of(lengths)
        with torch.no_grad(), _Made(sum(lengths) * bags.shape[-1]) as made:
            head(bags, mask)
        assert made.copies == copies
    packed = Packed.of(*bags_of([7, 7]))
    assert packed.stored._is_view()


# --- the Transformer ------------------------------------------------------------------------


def test_the_transformer_is_torchs_pre_norm_encoder() -> None:
    head: Any = make("transformer", transformer={"heads": 2, "layers": 3, "mlp_ratio": 1.5})
    bags, mask = bags_of([9, 5, 1], pad=float("nan"))
    output = head(bags, mask)
    layers = []
    for block in head.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            8, 2, 12, 0.0, torch.nn.functional.gelu, batch_first=True, norm_first=True
        )
        attention = block.attention
        parts: list[tuple[Any, Any]] = [
            (layer.self_attn.out_proj, attention.project), (layer.norm1, block.norm1),
            (layer.norm2, block.norm2), (layer.linear1, block.mlp[0]),
            (layer.linear2, block.mlp[2]),
        ]  # fmt: skip
        for theirs, own in parts:
            theirs.load_state_dict(own.state_dict())
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(attention.query_key_value.weight)
            layer.self_attn.in_proj_bias.copy_(attention.query_key_value.bias)
        layers.append(layer)
    for i, length in enumerate(mask.sum(1).tolist()):
        h = torch.from_numpy(embedded(weights_of(head), bags[i, :length])).float()
        tokens = torch.cat([head.token[0], h])[None]
        for layer in layers[:-1]:
            tokens = layer(tokens)
        normed = layers[-1].norm1(tokens)
        _, seen = layers[-1].self_attn(normed, normed, normed)  # the mean over the heads
        tokens = layers[-1](tokens)
        logits = head.classify(head.norm(tokens[0, 0]))
        torch.testing.assert_close(output.logits[i], logits, rtol=1e-4, atol=1e-5)
        want = seen[0, 0, 1:] / seen[0, 0, 1:].sum()
        torch.testing.assert_close(output.attention[i, :length], want, rtol=1e-4, atol=1e-6)


# --- TransMIL -------------------------------------------------------------------------------


def _norm(w: Weights, name: str, x: Array) -> Array:
    centered = x - x.mean(1, keepdims=True)
    spread = np.sqrt((centered**2).mean(1, keepdims=True) + 1e-5)
    return centered / spread * w[f"{name}.weight"] + w[f"{name}.bias"]


def _pinv(a: Array, iterations: int) -> Array:
    z = a.T / (np.abs(a).sum(0).max() * np.abs(a).sum(1).max())
    eye = np.eye(len(a))
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


def _attend(w: Weights, name: str, x: Array, landmarks: int) -> tuple[Array, Array]:
    """Two heads of width 4: the layer's output, and the first row of the mean attention."""
    n = len(x)
    qkv = (x @ w[f"{name}.query_key_value.weight"].T).reshape(n, 3, 2, 4)
    out, row = np.zeros((n, 2, 4)), np.zeros(n)
    for head in range(2):
        q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
        if n <= landmarks:
            matrix = softmax(q @ k.T / 2, 1)
        else:
            few_q, few_k = (
                np.array([part.mean(0) for part in np.array_split(z, landmarks)]) for z in (q, k)
            )
            inner = _pinv(softmax(few_q @ few_k.T / 2, 1), 6)
            matrix = softmax(q @ few_k.T / 2, 1) @ inner @ softmax(few_q @ k.T / 2, 1)
        kernel = w[f"{name}.local.weight"][head, 0, :, 0]
        padded = np.pad(v, ((16, 16), (0, 0)))
        local = np.array([kernel @ padded[i : i + 33] for i in range(n)])
        out[:, head] = matrix @ v + local
        row += np.maximum(matrix[0], 0) / 2
    return linear(w, f"{name}.project", out.reshape(n, 8)), row


def _ppeg(w: Weights, x: Array, side: int) -> Array:
    square = x[1:].reshape(side, side, -1)
    total = square.copy()
    for i, size in enumerate((7, 5, 3)):
        kernel, half = w[f"position.convolutions.{i}.weight"][:, 0], size // 2
        padded = np.pad(square, ((half, half), (half, half), (0, 0)))
        for row in range(side):
            for column in range(side):
                window = padded[row : row + size, column : column + size]
                total[row, column] += np.einsum("ije,eij->e", window, kernel)
        total += w[f"position.convolutions.{i}.bias"]
    return np.concatenate([x[:1], total.reshape(side * side, -1)])


@pytest.mark.parametrize("n", [1, 2, 3, 9, 11])
def test_transmil_in_numpy(n: int) -> None:
    head = make("transmil", transmil={"heads": 2, "landmarks": 5})
    bags, mask = bags_of([n, 20])
    output, w = head(bags, mask), weights_of(head)
    h = embedded(w, bags[0, :n])
    side = int(np.ceil(np.sqrt(n)))
    tokens = np.concatenate([w["token"], h, h[: side * side - n]])
    tokens = tokens + _attend(w, "attention1", _norm(w, "norm1", tokens), 5)[0]
    tokens = _ppeg(w, tokens, side)
    out, row = _attend(w, "attention2", _norm(w, "norm2", tokens), 5)
    logits = linear(w, "classify", _norm(w, "norm", tokens + out)[0])
    seen = row[1 : n + 1].copy()
    seen[: side * side - n] += row[n + 1 :]
    np.testing.assert_allclose(output.logits[0].detach(), logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(output.attention[0, :n].detach(), seen / seen.sum(), atol=1e-4)


def test_the_iteration_reaches_the_pseudo_inverse() -> None:
    scores = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = (3 * scores).softmax(-1)
    want = np.linalg.pinv(matrix.numpy())
    np.testing.assert_allclose(pseudo_inverse(matrix, 40), want, rtol=1e-6, atol=1e-8)
    flat = torch.full((4, 4), 0.25)  # of rank one, as from equal patches
    np.testing.assert_allclose(pseudo_inverse(flat, 6), np.linalg.pinv(flat.numpy()), atol=1e-5)
    # Each matrix by itself: the heads of an attention do not start each other's iteration.
    sizes = torch.stack([matrix, 100 * matrix])
    torch.testing.assert_close(pseudo_inverse(sizes, 2)[0], pseudo_inverse(matrix, 2))


@pytest.mark.parametrize(("n", "segments"), [(12, 4), (13, 4), (15, 4), (5, 5)])
def test_segments_are_as_equal_as_can_be(n: int, segments: int) -> None:
    values = torch.randn(2, n, 3, dtype=torch.float64)
    want = torch.stack([p.mean(1) for p in torch.tensor_split(values, segments, 1)], 1)
    torch.testing.assert_close(segment_means(values, segments), want)
