"""Every head: padding, order, sizes, evidence, precision, training, storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_heads import CLASSES, DIM, NAMES, SETS, WITH_EVIDENCE, bags_of, make, truth_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pathgen.config import build
from pathgen.errors import ConfigError
from pathgen.models.mil import MILConfig, MILHead, PoolingConfig, Target, build_head
from pathgen.models.mil.targets import criterion
from pathgen.runs import load_model, save_model

TARGETS: tuple[Target, ...] = ("classes", "ordinal", "regression", "survival")
DISTILLS = ("afs", "max", "max-min")


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


# --- padding and order ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 13), min_size=1, max_size=4),
    more=st.integers(1, 4),
    pads=st.sampled_from([(0.0, float("nan")), (float("inf"), -1e30), (float("nan"), 7.0)]),
)
def test_padding_takes_part_in_nothing(
    name: str, lengths: list[int], more: int, pads: tuple[float, float]
) -> None:
    head, truth = make(name), truth_of(len(lengths))
    said = []
    for pad in pads:
        bags, mask = bags_of([*lengths, max(lengths) + more], pad=pad)  # each of them is padded
        bags, mask = bags[:-1], mask[:-1]
        said.append(head(bags, mask))
    assert torch.equal(said[0].logits, said[1].logits)
    assert torch.equal(said[0].attention, said[1].attention)
    assert (said[1].attention[~mask] == 0).all()
    for i, length in enumerate(lengths):
        alone = head(bags[i : i + 1, :length], mask[i : i + 1, :length])
        _close(said[1].logits[i], alone.logits[0])
        _close(said[1].attention[i, :length], alone.attention[0])
        if said[1].evidence is not None:
            assert (said[1].evidence[~mask] == 0).all()
            _close(said[1].evidence[i, :length], alone.evidence[0])
    loss = head.losses(bags, mask, truth, criterion("classes"))
    loss.sum().backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_may_have_holes(name: str) -> None:
    bags, _ = bags_of([9])
    keep = torch.tensor([0, 2, 3, 7])
    mask = torch.zeros(1, 9, dtype=torch.bool).index_fill(1, keep, True)
    head = make(name)
    holed = head(torch.where(mask[..., None], bags, torch.nan), mask)
    dense = head(bags[:, keep], torch.ones(1, 4, dtype=torch.bool))
    _close(holed.logits, dense.logits)
    _close(holed.attention[:, keep], dense.attention)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(1, 40), seed=st.integers(0, 99), twins=st.booleans(),
    distill=st.sampled_from(DISTILLS),
)  # fmt: skip
def test_order_does_not_matter(name: str, n: int, seed: int, twins: bool, distill: str) -> None:
    bags, mask = bags_of([n], seed)
    if twins:  # twins have the same hash and tie in every maximum
        bags, mask = bags.repeat(1, 2, 1), mask.repeat(1, 2)
    order = torch.randperm(bags.shape[1], generator=torch.Generator().manual_seed(seed))
    # 7 instances at most: the Transformer divides the larger bags.
    head = make(name, dtfd={"pseudo_bags": 3, "distill": distill},
                transformer={"heads": 2, "max_instances": 7})  # fmt: skip
    one, other = head(bags, mask), head(bags[:, order], mask)
    _close(one.logits, other.logits)
    if not twins:  # which of two twins is taken is open
        _close(one.attention[:, order], other.attention)


def test_order_matters_to_transmil_unless_it_has_coordinates() -> None:
    bags, mask = bags_of([30])
    coords = torch.stack([torch.arange(30) % 6 * 256, torch.arange(30) // 6 * 256], -1)[None]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    head = make("transmil")
    scanned = head(bags, mask)
    mixed, placed = head(bags[:, order], mask), head(bags[:, order], mask, coords[:, order])
    assert (mixed.logits - scanned.logits).abs().max() > 1e-3
    _close(placed.logits, scanned.logits)
    _close(placed.attention, scanned.attention[:, order])


# --- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [0, 3])
def test_an_empty_bag_is_classified_by_the_biases(name: str, target: Target, n: int) -> None:
    head = make(name, target)
    bags, mask = bags_of([0, n], pad=float("nan"))
    output = head(bags, mask)
    assert (output.attention[0] == 0).all()
    bias = head.classify.bias
    if name == "dsmil":
        bias = (bias + head.bag.bias) / 2
    torch.testing.assert_close(output.logits[0], head.link(bias[None])[0])
    losses = head.train().losses(bags, mask, truth_of(2), criterion(target))
    assert losses.isfinite().all()
    losses.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 17, 50_000])
def test_bags_of_any_size(name: str, n: int) -> None:
    bags, mask = bags_of([n])
    head = make(name, transformer={"heads": 2, "max_instances": 1000}, transmil={"heads": 2})
    with torch.no_grad():
        output = head(bags, mask)
        loss = head.train().losses(bags, mask, truth_of(1), criterion("classes"))
    assert output.logits.isfinite().all()
    assert loss.isfinite().all()
    assert output.attention.sum().item() == pytest.approx(1, abs=1e-3)
    assert (output.attention >= 0).all()


def test_attention_is_never_held_for_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((q.shape[-2], k.shape[-2]))
        return attend(q, k, *rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    bags, mask = bags_of([3000, 20])
    with torch.no_grad():
        make("transformer", transformer={"heads": 2, "max_instances": 100})(bags, mask)
        assert max(max(pair) for pair in seen) <= 101
        assert sum(pair[0] for pair in seen) == 3020 + 31  # every patch, and a token a part
        seen.clear()
        make("transmil", transmil={"heads": 2, "landmarks": 16})(bags, mask)
    assert len(seen) == 8
    assert all(min(pair) == 16 for pair in seen)


def test_equal_parts_of_a_large_bag_answer_as_one() -> None:
    """Of a bag made of one patch many times every part is the same, and so is the mean."""
    one, _ = bags_of([1])
    head = make("transformer", transformer={"heads": 2, "max_instances": 10})
    small, large = (
        head(one.expand(1, n, DIM), torch.ones(1, n, dtype=torch.bool)) for n in (10, 30)
    )
    _close(small.logits, large.logits)
    _close(large.attention, torch.full((1, 30), 1 / 30))


# --- evidence -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "distill"),
    [*((name, "afs") for name in WITH_EVIDENCE), ("dtfd", "max"), ("dtfd", "max-min")],
)  # fmt: skip
def test_evidence_and_biases_are_the_logits(name: str, target: Target, distill: str) -> None:
    head = make(name, target, dtfd={"pseudo_bags": 3, "distill": distill})
    head.expect(truth_of(8))
    bags, mask = bags_of([0, 11, 5])
    output = head(bags, mask)
    assert output.evidence is not None
    assert output.evidence.shape == (3, 11, head.config.outputs)
    _close(output.evidence.sum(1) + output.logits[0], output.logits)
    assert (output.evidence[1] != 0).any()
    assert head.train()(bags, mask).evidence is None


@pytest.mark.parametrize("name", ["transmil", "transformer"])
def test_heads_whose_patches_mix_claim_no_evidence(name: str) -> None:
    assert make(name)(*bags_of([5])).evidence is None


# --- precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_safe(name: str, dtype: torch.dtype) -> None:
    head = make(name)
    bags, mask = bags_of([12, 5, 0], pad=float("nan"))
    want = head(bags, mask)
    with torch.autocast("cpu", dtype):
        output = head(bags.to(dtype), mask)
        losses = head.train().losses(bags, mask, truth_of(3), criterion("classes"))
    assert output.logits.dtype == output.attention.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(output.attention.sum(1), torch.tensor([1.0, 1, 0]))
    if name not in ("max", "dtfd", "dsmil", "instance-max", "transmil"):  # which choose patches
        torch.testing.assert_close(output.logits, want.logits, rtol=0.1, atol=0.15)
    losses.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_double_head_answers_in_double(name: str) -> None:
    bags, mask = bags_of([9, 4])
    head = make(name)
    single, double = head(bags, mask), head.double()(bags.double(), mask)
    assert double.logits.dtype == double.attention.dtype == torch.float64
    torch.testing.assert_close(double.logits.float(), single.logits, rtol=1e-3, atol=1e-4)


# --- training -------------------------------------------------------------------------------


def _trained(name: str, target: Target, steps: int, dropout: float) -> tuple[MILHead, list[float]]:
    torch.manual_seed(3)
    head = make(
        name, target, seed=1, dropout=dropout, clam={"k_sample": 3, "subtyping": True}
    ).train()
    truth = truth_of(5)
    head.expect(truth)
    bags, mask = bags_of([12, 9, 12, 1, 5], pad=float("nan"))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = head.losses(bags, mask, truth, criterion(target)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return head, losses


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(name: str, target: Target) -> None:
    _, losses = _trained(name, target, 12, 0.0)
    assert torch.tensor(losses).isfinite().all()
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1 * abs(losses[0])


@pytest.mark.parametrize("name", NAMES)
def test_training_repeats(name: str) -> None:
    (one, _), (other, _) = _trained(name, "classes", 3, 0.2), _trained(name, "classes", 3, 0.2)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder_says_which_head(name: str, tmp_path: Path) -> None:
    head = make(name, "ordinal")
    save_model(tmp_path / "model", head)
    again = load_model(tmp_path, MILHead)
    assert type(again) is type(head)
    assert again.config == head.config
    bags, mask = bags_of([8, 2])
    assert torch.equal(again(bags, mask).logits, head(bags, mask).logits)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"head": "abmill"}, "head"),
        ({"head": "transmil", "embed": 12}, "'embed'. 12 does not divide into 8 heads"),
        ({"head": "transformer", "embed": 20}, "embed"),
        ({"target": "survival"}, "'outputs'. A survival head has one, not 3"),
        ({"pooling": "mean"}, "pooling"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build(MILConfig, {"dim": 4, "outputs": 3} | settings)


def test_every_name_is_a_head_and_the_default_is_gated() -> None:
    assert PoolingConfig().head == "abmil"
    names = MILConfig.model_json_schema()["properties"]["head"]["enum"]
    assert sorted(names) == sorted(NAMES)
    for name in names:
        head = build_head(MILConfig(head=name, dim=DIM, outputs=CLASSES))
        assert head(*bags_of([5])).logits.shape == (1, CLASSES)
