"""PyTorch's scaled_dot_product_attention and its autograd as a second oracle, where PyTorch is installed."""

import numpy as np
import pytest

import cuflash

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the second oracle is not asked")


def sdpa(q, k, v, **options):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)


def repeated(x, hq):
    """Key/value heads repeated for grouped queries."""
    return x.repeat_interleave(hq // x.shape[1], dim=1)


@pytest.mark.parametrize("hk", [4, 2, 1])
@pytest.mark.parametrize("case", ["plain", "scale", "top-left causal", "mask", "bias"])
def test_forward_and_gradients(case, hk, backend, qkv, normal):
    q, k, v = qkv(2, 4, hk, 19, 33, 16, 8, dtype="float64")
    dout, bias = normal(2, 4, 19, 8, dtype="float64", seed=9), normal(4, 19, 33, dtype="float64", seed=8)
    mask = normal(2, 1, 19, 33) > -1
    ours, theirs = {
        "plain": ({}, {}),
        "scale": ({"scale": 0.3}, {"scale": 0.3}),
        "top-left causal": ({"causal": True, "q_offset": 0}, {"is_causal": True}),
        "mask": ({"mask": backend.asarray(mask)}, {"attn_mask": torch.from_numpy(mask)}),
        "bias": ({"bias": backend.asarray(bias)}, {"attn_mask": torch.from_numpy(bias).requires_grad_()}),
    }[case]
    operands = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    expected = sdpa(operands[0], *(repeated(x, 4) for x in operands[1:]), **theirs)
    expected.backward(torch.from_numpy(dout))
    out, vjp = cuflash.attention_vjp(*map(backend.asarray, (q, k, v)), **ours)
    grads = vjp(backend.asarray(dout))
    np.testing.assert_allclose(backend.to_numpy(out), expected.detach().numpy(), rtol=1e-12, atol=1e-13)
    for grad, operand in zip(grads[:3], operands, strict=True):
        np.testing.assert_allclose(backend.to_numpy(grad), operand.grad.numpy(), rtol=1e-11, atol=1e-12)
    if case == "bias":
        np.testing.assert_allclose(
            backend.to_numpy(grads.dbias), theirs["attn_mask"].grad.numpy(), rtol=1e-11, atol=1e-12
        )


def test_softcap_and_lse_through_autograd(backend, qkv, normal):
    q, k, v = qkv(1, 2, 2, 7, 11, 4, dtype="float64")
    dout, dlse = normal(1, 2, 7, 4, dtype="float64", seed=9), normal(1, 2, 7, dtype="float64", seed=8)
    sinks = normal(2, dtype="float64")
    tq, tk, tv, ts = (torch.from_numpy(x).requires_grad_() for x in (q, k, v, sinks))
    scores = 1.5 * torch.tanh(tq @ tk.transpose(-1, -2) / 2 / 1.5)
    joint = torch.cat([scores, ts[:, None, None].expand(1, 2, 7, 1)], dim=-1)
    lse = torch.logsumexp(joint, dim=-1)
    out = torch.exp(scores - lse[..., None]) @ tv
    ((out * torch.from_numpy(dout)).sum() + (lse * torch.from_numpy(dlse)).sum()).backward()
    moved = map(backend.asarray, (q, k, v))
    (own, own_lse), vjp = cuflash.attention_vjp(*moved, softcap=1.5, sinks=backend.asarray(sinks), return_lse=True)
    grads = vjp(backend.asarray(dout), backend.asarray(dlse))
    np.testing.assert_allclose(backend.to_numpy(own), out.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(backend.to_numpy(own_lse), lse.detach().numpy(), rtol=1e-12)
    for grad, operand in zip((grads.dq, grads.dk, grads.dv, grads.dsinks), (tq, tk, tv, ts), strict=True):
        np.testing.assert_allclose(backend.to_numpy(grad), operand.grad.numpy(), rtol=1e-11, atol=1e-13)
