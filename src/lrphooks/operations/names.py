"""The operations of torch by kind, each under its plain name.

A name stands for every alias: the function in ``torch``, the method, the operator, the in-place form, the one in
``torch.nn.functional``, ``torch.special``, ``torch.linalg`` and ``torch.ops.aten``, and those that ALIASES lists. What
a kind means for relevance is in :mod:`lrphooks.engine.handlers`.
"""

from __future__ import annotations

#: Rearranges or selects elements without computing with them, so facts about the elements carry over.
SHAPE = """
    view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze transpose t movedim permute adjoint
    expand expand_as broadcast_to contiguous clone T mT H mH narrow select slice getitem index index_select gather
    take take_along_dim masked_select flip fliplr flipud rot90 roll diagonal diag diagflat diag_embed tril triu
    repeat repeat_interleave tile to float double half bfloat16 type type_as cpu cuda as_strided pixel_shuffle
    pixel_unshuffle channel_shuffle native_channel_shuffle atleast_1d atleast_2d atleast_3d alias positive dropout
    dropout1d dropout2d dropout3d feature_dropout requires_grad resolve_conj resolve_neg _unsafe_view lift_fresh
    detach_copy to_dense _to_copy view_copy expand_copy squeeze_copy unsqueeze_copy permute_copy transpose_copy
    t_copy pin_memory __deepcopy__ narrow_copy select_copy slice_copy diagonal_copy alias_copy as_strided_copy
    cdouble cfloat chalf as_tensor asarray _unsafe_index lift_fresh_copy _reshape_alias _reshape_copy
"""

#: Those of SHAPE whose second operand gives a shape or a type alone.
SHAPED_BY_ANOTHER = frozenset(("view_as", "reshape_as", "expand_as", "type_as", "to"))

#: As SHAPE, with several results.
SPLIT = """
    chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind unsafe_chunk unsafe_split
    unsafe_split_with_sizes split_copy split_with_sizes_copy unbind_copy broadcast_tensors meshgrid iter
    _pack_padded_sequence native_dropout
"""

#: Selects among values, or is piecewise linear through the origin: the plain gradient hands on all relevance.
SELECT = """
    leaky_relu prelu rrelu max amax min amin topk sort msort median nanmedian kthvalue
    mode cummax cummin aminmax max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
    max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices
    fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices
    fractional_max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d abs hardshrink quantile nanquantile where
    masked_fill nan_to_num
"""

#: Clips to bounds, or selects the larger or the smaller of two.
CLAMP = "clamp clamp_min clamp_max hardtanh relu6 threshold maximum minimum fmax fmin"

#: Names that stand for a function of CLAMP where a second tensor is given.
OF_TWO = {"max": "maximum", "min": "minimum"}

#: Those of SELECT that act on each element by itself and keep 0.
ELEMENTWISE_SELECT = """
    leaky_relu prelu rrelu abs absolute hardshrink nan_to_num
"""

#: Linear in the activations together, or affine: sums, means, interpolation, writing into place.
LINEAR_COMBINATION = """
    add sub rsub neg cat stack hstack vstack dstack column_stack deg2rad rad2deg trapezoid cumulative_trapezoid
    gradient sum mean nansum nanmean cumsum sum_to_size trace index_add index_copy index_put index_fill scatter
    scatter_add scatter_reduce index_reduce select_scatter slice_scatter diagonal_scatter as_strided_scatter
    masked_scatter put setitem copy fill zero pad constant_pad_nd reflection_pad1d replication_pad1d avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample
    upsample_bilinear upsample_nearest upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d fold unfold embedding embedding_bag affine_grid diff
    segment_reduce fft ifft fft2 ifft2 fftn ifftn rfft irfft rfft2 irfft2 rfftn irfftn hfft ihfft hfft2 ihfft2 hfftn
    ihfftn fftshift ifftshift stft istft real imag view_as_real view_as_complex complex conj conj_physical
    alpha_dropout feature_alpha_dropout unfold_copy im2col col2im block_diag cartesian_prod combinations
    pad_sequence _pad_packed_sequence reflection_pad2d reflection_pad3d replication_pad2d replication_pad3d
    _unsafe_index_put _fft_c2c _fft_c2r _fft_r2c _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
"""

#: Those that add two activations, which may have the rule of a linear layer.
SUM = "add sub"

#: Multiplies activations: each receives an equal part.
PRODUCT = """
    mul mm bmm mv matmul dot vdot inner outer einsum tensordot kron chain_matmul multi_dot cross
    prod bilinear _sparse_mm _grouped_mm grid_sample lerp vecdot
"""

#: The products, and those with a summand, that are linear layers where one of their factors is a parameter. The others,
#: such as mul, multiply each element by one weight.
WEIGHTED = """
    matmul mm bmm mv addmm addmv addbmm baddbmm dot vdot inner vecdot einsum tensordot bilinear cross multi_dot
    chain_matmul _grouped_mm
"""

#: Adds to its first argument the product of the next two.
ADDED_PRODUCT = "addmm addmv addbmm baddbmm addr addcmul"

#: Divides: the denominator is a constant.
DIVISION = "div addcdiv solve solve_triangular triangular_solve cholesky_solve"

#: Elementwise with f(0) = 0: relevance keeps its place.
ACTIVATION = """
    gelu silu mish tanh hardswish elu selu celu softsign tanhshrink softshrink expm1 log1p
    erf erfinv sin asin tan atan sinh asinh atanh
"""

#: Those whose own derivative is computed from their result, so that models may write to their input.
OF_RESULT = "tanh tanhshrink expm1 tan sqrt"

#: Values that do not vanish with their input: they gate or normalise, and count as constants.
CONSTANT = """
    sigmoid hardsigmoid logsigmoid softplus exp exp2 rsqrt reciprocal log log2 log10 logsumexp logaddexp logaddexp2
    var std norm vector_norm matrix_norm frobenius_norm nuclear_norm cos cosh acos acosh erfc erfcx sinc logit
    cdist pdist pairwise_distance cosine_similarity log_ndtr ndtr hypot atan2 angle remainder fmod floor_divide
    frac digamma lgamma i0 i0e i1 i1e cov corrcoef det logdet slogdet inverse dist logcumsumexp cond matrix_exp
    sign sgn round floor ceil trunc
"""

#: Subtracts a constant: log_softmax(x) = x - logsumexp(x).
SHIFT = "log_softmax"

SOFTMAX = "softmax"

ATTENTION = "scaled_dot_product_attention"

NORMALIZATION = "layer_norm rms_norm group_norm instance_norm"

#: Linear layers, which a rule for linear maps may own.
LINEAR = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"

#: Python functions of torch made of other operations: they are run again with each of those in view.
COMPOSED = """
    multi_head_attention_forward normalize local_response_norm softmin gumbel_softmax lp_pool1d lp_pool2d
    lp_pool3d
"""

#: Operations of torch.ops.higher_order that run functions of the model's own, and are run as these.
HIGHER_ORDER = "cond while_loop wrap_with_set_grad_enabled"

RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"

#: Second names of operations. Rules for one name hold for all.
ALIASES = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "pos": "positive", "clip": "clamp", "fix": "trunc", "arcsin": "asin", "arccos": "acos", "arctan": "atan",
    "arctan2": "atan2", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "expit": "sigmoid",
    "log_sigmoid": "logsigmoid", "gammaln": "lgamma", "psi": "digamma", "_softmax": "softmax",
    "_log_softmax": "log_softmax", "concat": "cat", "concatenate": "cat", "row_stack": "vstack", "ger": "outer",
    "inv": "inverse", "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "trapz": "trapezoid",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d", "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "_prelu_kernel": "prelu", "_safe_softmax": "softmax", "grid_sampler": "grid_sample",
    "grid_sampler_2d": "grid_sample", "grid_sampler_3d": "grid_sample", "_cdist_forward": "cdist",
    "_pdist_forward": "pdist",
}  # fmt: skip

#: Operations whose arguments have another order in torch and in torch.ops.aten than in torch.nn.functional.
REORDERED = ("batch_norm", "instance_norm")

#: Core ATen operators with arguments and results of their own, which stand for functions of torch.nn.functional.
NATIVE = """
    convolution _convolution native_layer_norm native_group_norm native_batch_norm cudnn_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update _fused_rms_norm
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math
"""

#: Functions of lists of tensors: those of torch.foreach, and under ``torch._foreach_`` of older releases.
FOREACH = """
    abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min clone copy cos cosh div erf erfc exp expm1 floor
    frac lerp lgamma log log10 log1p log2 max maximum minimum mm mul neg norm pow reciprocal round rsqrt sigmoid sign
    sin sinh sqrt sub tan tanh trunc zero
"""

#: Properties of a tensor that are tensors themselves, and so carry relevance.
TENSOR_PROPERTIES = ("T", "mT", "H", "mH", "real", "imag")

#: Python operators by the name of the operation that they are.
OPERATORS = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add_", "__sub__": "sub", "__rsub__": "rsub",
    "__isub__": "sub_", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_", "__matmul__": "matmul",
    "__rmatmul__": "rmatmul", "__truediv__": "div", "__div__": "div", "__rtruediv__": "rdiv", "__rdiv__": "rdiv",
    "__itruediv__": "div_", "__idiv__": "div_", "__pow__": "pow", "__rpow__": "rpow", "__ipow__": "pow_",
    "__neg__": "neg", "__pos__": "pos", "__abs__": "abs", "__getitem__": "getitem", "__setitem__": "setitem",
    "__floordiv__": "floor_divide", "__rfloordiv__": "floor_divide", "__ifloordiv__": "floor_divide_",
    "__mod__": "remainder", "__rmod__": "remainder", "__imod__": "remainder_", "__iter__": "iter",
    "__reversed__": "flip",
}  # fmt: skip

#: What takes the values of a tensor out of the graph.
TAKE_OUT = frozenset(("detach", "detach_", "data", "item", "tolist", "numpy", "__float__", "__int__", "__format__"))
