"""The functions of torch that the catalog leaves out on purpose, by their name without the in-place underscore."""

#: Have a derivative, and are not linear or have no convention: a model that calls one is told so.
REPORTED = """
    bernoulli binary_cross_entropy binary_cross_entropy_with_logits cauchy cholesky_ex cholesky_inverse
    copysign cross_entropy cumprod eigh eigvalsh entr eq exponential fill_diagonal frexp
    gaussian_nll_loss ge geometric greater greater_equal gt hinge_embedding_loss huber_loss inv_ex kl_div l1_loss
    ldexp le less less_equal linear_cross_entropy log_normal logical_and logical_not logical_or logical_xor
    lstsq lt lu lu_factor lu_factor_ex margin_ranking_loss matrix_power matrix_sqrth mse_loss
    multi_margin_loss multigammaln multilabel_soft_margin_loss mvlgamma
    ndtri ne nextafter nll_loss norm_except_dim normal not_equal pca_lowrank
    pinv pinverse poisson poisson_nll_loss polygamma qr random resize_as share_memory slice_inverse smooth_l1_loss
    soft_margin_loss solve_ex svd svd_lowrank svdvals sym_sum tensorinv to_sparse
    triplet_margin_loss triplet_margin_with_distance_loss uniform vander xlog1py xlogy zeta
"""

#: Have no derivative, no tensor of the model among their arguments, or need storage or a backend of their own.
#: What one returns requires no gradient, or is reported as well.
WITHOUT_DERIVATIVE = """
    __and__ __array__ __array_wrap__ __complex__ __dlpack__ __dlpack_device__ __iand__ __ilshift__ __invert__
    __ior__ __irshift__ __ixor__ __long__ __lshift__ __nonzero__ __or__ __rand__ __reduce_ex__ __rlshift__ __ror__
    __rrshift__ __rshift__ __rxor__ __setstate__ __xor__ _autocast_to_full_precision
    _autocast_to_reduced_precision _clear_non_serializable_cached_data _coalesced _dimI _dimV _indices _is_view
    _nested_tensor_size _nested_tensor_storage_offsets _nested_tensor_strides _nnz _sparse_mask_projection
    _sym_int _to_dense _values affine_grid_generator airy_ai all allclose any apply argmax argmin
    argsort argwhere autocast batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt
    batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats bessel_j0
    bessel_j1 bessel_y0 bessel_y1 bincount binomial bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor bucketize ccol_indices ccol_indices_copy chebyshev_polynomial_t
    chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w cholesky choose_qparams_optimized
    coalesce col_indices col_indices_copy const_data_ptr conv_tbc convolution cosine_embedding_loss count_nonzero
    crow_indices crow_indices_copy ctc_loss dense_dim dequantize detach dim_order eig eigvals empty_like equal
    fake_quantize_per_channel_affine fake_quantize_per_tensor_affine fbgemm_linear_fp16_weight
    fbgemm_linear_fp16_weight_fp32_activation fbgemm_linear_int8_weight fbgemm_linear_int8_weight_fp32_activation
    fbgemm_linear_quantize_weight fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix full_like
    fused_moving_avg_obs_fake_quant gammainc gammaincc gcd geqrf get_device grid_sampler grid_sampler_2d
    grid_sampler_3d hash_tensor heaviside hermite_polynomial_h hermite_polynomial_he histc histogram histogramdd
    householder_product hspmm igamma igammac indices indices_copy int_repr ipu is_coalesced is_complex is_conj
    is_distributed is_floating_point is_inference is_neg is_nonzero is_pinned is_same_size is_shared is_signed
    isclose isfinite isin isinf isnan isneginf isposinf isreal laguerre_polynomial_l lcm ldl_factor ldl_factor_ex
    ldl_solve legendre_polynomial_p lu_solve lu_unpack map map2 matrix_rank miopen_batch_norm miopen_convolution
    miopen_convolution_add_relu miopen_convolution_relu miopen_convolution_transpose miopen_depthwise_convolution
    miopen_rnn modified_bessel_i0 modified_bessel_i1 modified_bessel_k0 modified_bessel_k1 module_load mtia
    multilabel_margin_loss multinomial native_batch_norm native_dropout native_group_norm native_layer_norm
    native_norm nonzero nonzero_static numel one_hot ones_like orgqr ormqr polar q_per_channel_axis
    q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qscheme quantize_per_channel
    quantize_per_tensor quantize_per_tensor_dynamic quantized_batch_norm quantized_gru_cell quantized_lstm_cell
    quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d quantized_rnn_relu_cell quantized_rnn_tanh_cell
    record_stream register_post_accumulate_grad_hook renorm resize resize_as_sparse row_indices row_indices_copy
    scaled_modified_bessel_k0 scaled_modified_bessel_k1 searchsorted set shifted_chebyshev_polynomial_t
    shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v shifted_chebyshev_polynomial_w signbit smm
    sparse_dim sparse_mask sparse_resize sparse_resize_and_clear spherical_bessel_j0 sspaddmm
    storage_type sym_float sym_ite sym_max sym_min sym_not sym_sqrt tensorsolve to_mkldnn unique
    unique_consecutive unravel_index values values_copy view_as_complex_copy view_as_real_copy xpu zeros_like
    _update_names align_as align_to has_names rand_like randint_like randn_like refine_names rename
"""

#: Computes inside an autograd function of its own, which no mode sees: a known limit.
INVISIBLE = "lobpcg"
