"""How moat's endpoints are read, and how its backbone is made small."""


def _endpoints(model, record, x):
    """Every stage's map, and the same after its GELU."""
    return [y for i, stage in enumerate(model.walk(x)) for y in (stage, model.tap(stage, i))]


_TEN = (
    "custom: all ten endpoints in the order stage1, res1, stage2, res2, ..., stage5, res5; res_k = GELU(stage_k), the map that dense "
    "heads read"
)
CALLS = {_TEN: _endpoints}
_LAYOUT = "the layout of heads of 32 channels, the model's"
WORDS = {
    "tiny_moat_0_tf_names": {":0 dropped": "a name", "(C, heads, 32)": _LAYOUT, "(heads, 32, C)": _LAYOUT},
    "tiny_moat_1_no_pe_windows_features": {"3x3 pooling": "an argument of the record"},
}
SMALL = {"tiny_moat_0": {"stem": 8, "dims": (8, 16, 32, 64), "depths": (1, 1, 2, 2)}}
