"""What docs/migrating says of PyTorch and JAX, asked of them where they are installed; test_torch.py asks the rest."""

import numpy as np
import pytest

import cuflash

B, HQ, HK, LQ, LK, D = 2, 4, 2, 5, 7, 8
SEES_NOTHING = 2  # the query that a mask below leaves without a key


@pytest.fixture
def arrays(qkv):
    """q, k, v in float32, heads first."""
    return qkv(B, HQ, HK, LQ, LK, D)


@pytest.fixture
def mask(normal):
    mask = normal(LQ, LK, seed=5) > -0.3
    mask[SEES_NOTHING] = False
    return mask


def close(theirs, ours):
    np.testing.assert_allclose(np.asarray(theirs), ours, rtol=1e-5, atol=2e-6)


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch", reason="PyTorch is not installed: its page is not checked")

    def test_grouped_heads_and_top_left(self, torch, arrays):
        sdpa = torch.nn.functional.scaled_dot_product_attention
        theirs = sdpa(*map(torch.from_numpy, arrays), is_causal=True, enable_gqa=True)
        close(theirs, cuflash.attention(*arrays, causal=True, q_offset=0))

    def test_bottom_right(self, torch, arrays):
        bias = pytest.importorskip("torch.nn.attention.bias")
        q, k, v = map(torch.from_numpy, arrays)
        k, v = (x.repeat_interleave(HQ // HK, dim=1) for x in (k, v))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        theirs = sdpa(q, k, v, attn_mask=bias.causal_lower_right(LQ, LK))
        close(theirs, cuflash.attention(*arrays, causal=True))

    def test_query_without_keys(self, torch, arrays, mask):
        sdpa = torch.nn.functional.scaled_dot_product_attention
        theirs = sdpa(*map(torch.from_numpy, arrays), attn_mask=torch.from_numpy(mask), enable_gqa=True)
        close(theirs, cuflash.attention(*arrays, mask=mask))

    def test_bfloat16_passes_as_integers(self, torch):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        tensor = torch.tensor([1.0, -2.5, 3e30]).bfloat16()
        array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        assert array.astype(float).tolist() == tensor.tolist()
        assert torch.equal(torch.from_numpy(array.view("int16")).view(torch.bfloat16), tensor)

    @pytest.mark.parametrize("case", ["key_padding_mask", "attn_mask", "attn_mask by head", "add_zero_attn"])
    def test_multihead_attention(self, torch, case, normal):
        zero = {"add_zero_attn": True} if case == "add_zero_attn" else {}
        module = torch.nn.MultiheadAttention(16, HQ, batch_first=True, dtype=torch.float64, **zero).eval()
        torch.nn.init.normal_(module.in_proj_bias)
        x, padding = normal(B, LK, 16, dtype="float64"), np.arange(LK) >= np.array([[LK], [4]])
        by_head = normal(B, HQ, LK, LK, seed=3) > 0.5
        by_head[..., 0] = False
        causal = ~np.tri(LK, dtype=bool)
        theirs, ours = {
            "key_padding_mask": ({"key_padding_mask": padding}, {"mask": ~padding[:, None, None, :]}),
            "attn_mask": ({"attn_mask": causal}, {"causal": True}),
            "attn_mask by head": ({"attn_mask": by_head.reshape(-1, LK, LK)}, {"mask": ~by_head}),
            "add_zero_attn": ({}, {"sinks": np.zeros(HQ)}),
        }[case]
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in theirs.items()}
            expected, _ = module(*[torch.from_numpy(x)] * 3, need_weights=False, **tensors)
        weights = {name: value.numpy() for name, value in module.state_dict().items()}
        projected = x @ weights["in_proj_weight"].T + weights["in_proj_bias"]
        q, k, v = (part.reshape(B, LK, HQ, -1) for part in np.split(projected, 3, axis=-1))
        out = cuflash.attention(q, k, v, layout="blhd", **ours).reshape(x.shape)
        np.testing.assert_allclose(expected, out @ weights["out_proj.weight"].T + weights["out_proj.bias"], rtol=1e-11)

    def test_multihead_attention_weights_are_averaged(self, torch, normal):
        module = torch.nn.MultiheadAttention(16, HQ, batch_first=True, bias=False, dtype=torch.float64).eval()
        x = normal(B, LK, 16, dtype="float64")
        with torch.no_grad():
            _, expected = module(*[torch.from_numpy(x)] * 3)
        projected = np.split(x @ module.in_proj_weight.detach().numpy().T, 3, axis=-1)
        q, k = (part.reshape(B, LK, HQ, -1) for part in projected[:2])
        np.testing.assert_allclose(expected, cuflash.attention_weights(q, k, layout="blhd").mean(axis=1), rtol=1e-11)

    @pytest.mark.filterwarnings("ignore")  # flex_attention warns that it was not compiled
    @pytest.mark.parametrize("case", ["softcap", "alibi", "causal", "offset", "window", "lengths", "nothing seen"])
    def test_flex_attention(self, torch, case, arrays, mask):
        flex = pytest.importorskip("torch.nn.attention.flex_attention")
        slopes, lengths, seen = torch.tensor([0.5, 0.25, 0.1, 0.0]), torch.tensor([7, 3]), torch.from_numpy(mask)
        score_mod, mask_mod, ours = {
            "softcap": (lambda s, b, h, i, j: 2 * torch.tanh(s / 2), None, {"softcap": 2.0}),
            "alibi": (
                lambda s, b, h, i, j: s - slopes[h] * abs(i - j),
                None,
                {"bias": cuflash.Alibi(slopes.numpy()), "q_offset": 0},
            ),
            "causal": (None, lambda b, h, i, j: i >= j, {"causal": True, "q_offset": 0}),
            "offset": (None, lambda b, h, i, j: i + 1 >= j, {"causal": True, "q_offset": 1}),
            "window": (None, lambda b, h, i, j: abs(i - j) <= 2, {"window": 2, "q_offset": 0}),
            "lengths": (None, lambda b, h, i, j: j < lengths[b], {"kv_lengths": lengths.numpy()}),
            "nothing seen": (None, lambda b, h, i, j: seen[i, j], {"mask": mask}),
        }[case]
        block_mask = mask_mod and flex.create_block_mask(mask_mod, B, None, LQ, LK, device="cpu")
        theirs, aux = flex.flex_attention(
            *map(torch.from_numpy, arrays), score_mod=score_mod, block_mask=block_mask, enable_gqa=True,
            return_aux=flex.AuxRequest(lse=True),
        )  # fmt: skip
        out, lse = cuflash.attention(*arrays, return_lse=True, **ours)
        close(theirs, out)
        close(aux.lse, lse)


class TestJax:
    @pytest.fixture(autouse=True)
    def attention(self):
        nn = pytest.importorskip("jax.nn", reason="JAX is not installed: its page is not checked")
        return nn.dot_product_attention

    @pytest.fixture
    def blhd(self, arrays):
        return [x.swapaxes(1, 2).copy() for x in arrays]

    @pytest.mark.parametrize("case", ["plain", "scale", "causal", "window", "one width", "bias", "lengths"])
    def test_options(self, attention, case, blhd, normal):
        bias = normal(1, HQ, LQ, LK, dtype="float32", seed=9)
        lengths = np.array([7, 3], np.int32)
        theirs, ours = {
            "plain": ({}, {}),
            "scale": ({"scale": 0.3}, {"scale": 0.3}),
            "causal": ({"is_causal": True}, {"causal": True, "q_offset": 0}),
            "window": ({"local_window_size": (2, 1)}, {"window": (2, 1), "q_offset": 0}),
            "one width": ({"local_window_size": 2}, {"window": 2, "q_offset": 0}),
            "bias": ({"bias": bias}, {"bias": bias}),
            "lengths": ({"key_value_seq_lengths": lengths}, {"kv_lengths": lengths}),
        }[case]
        expected, residual = attention(*blhd, return_residual=True, **theirs)
        out, lse = cuflash.attention(*blhd, layout="blhd", return_lse=True, **ours)
        close(expected, out)
        close(residual, lse.swapaxes(1, 2))

    def test_query_without_keys_gets_the_mean_there(self, attention, blhd, mask):
        q, k, v = blhd
        expected = np.array(attention(q, k, v, mask=mask[None, None]))
        close(expected[:, SEES_NOTHING], v.mean(axis=1).repeat(HQ // HK, axis=1))
        out = cuflash.attention(q, k, v, layout="blhd", mask=mask)
        expected[:, SEES_NOTHING] = 0
        close(expected, out)

    def test_query_lengths_zero_rows_there(self, attention, blhd):
        expected = np.asarray(attention(*blhd, query_seq_lengths=np.array([5, 2], np.int32)))
        close(expected[0], cuflash.attention(*blhd, layout="blhd")[0])
        assert not expected[1, 2:].any()

    def test_vjp(self, attention, blhd):
        import jax

        expected, pull_back = jax.vjp(lambda *operands: attention(*operands, is_causal=True), *blhd)
        out, vjp = cuflash.attention_vjp(*blhd, layout="blhd", causal=True, q_offset=0)
        for theirs, ours in zip(pull_back(np.asarray(expected)), vjp(out)[:3], strict=True):
            close(theirs, ours)

    def test_arrays_pass_as_they_are(self, attention):
        import jax.numpy as jnp

        for dtype in (jnp.float32, jnp.bfloat16):
            array = np.asarray(jnp.ones((3, 4), dtype))
            assert cuflash.attention(array, array, array).dtype == array.dtype
