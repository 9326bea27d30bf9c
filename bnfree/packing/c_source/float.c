/* Arithmetic in float32. What is rounded, and in which order, is the same as in bnfree's compiled engine, so that no
   activation on its threshold turns over. Compilers must not join products and sums: -ffp-contract=off. */

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* x * y + z, rounded once. Where no instruction does it, the product is exact in double. */
INLINE float multiply_add(float x, float y, float z)
{
#if defined(__GNUC__) && defined(__FP_FAST_FMAF)
    return __builtin_fmaf(x, y, z);
#else
    return (float)((double)x * (double)y + (double)z);
#endif
}

INLINE value plus(value x, value y) { return x + y; }

/* The mean of `count` values, 1, 2 or 4, times the unit's factor. */
INLINE value mean(const struct unit *u, value sum, int count)
{
    return sum * (1.0f / (float)count) * u->factor;
}

/* A unit's sums of signs, the shortcut added and the RPReLU applied, for 16 outputs; the bits for the next unit. */
INLINE uint32_t finish(const struct unit *u, int block, const base_number *base, const int32_t *differing,
                       const value *residual, value *output)
{
    const float *scale = u->constants + block * 5 * BLOCK;
    const float *shift_in = scale + BLOCK, *slope = scale + 2 * BLOCK;
    const float *shift_out = scale + 3 * BLOCK, *threshold = scale + 4 * BLOCK;
#if defined(AVX512)
    __m512i sums = _mm512_loadu_si512(differing);
    sums = _mm512_sub_epi32(load_base(base), _mm512_add_epi32(sums, sums));
    __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(scale));
    x = _mm512_add_ps(_mm512_add_ps(x, _mm512_loadu_ps(residual)), _mm512_loadu_ps(shift_in));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LE_OQ);
    x = _mm512_mask_mul_ps(x, negative, x, _mm512_loadu_ps(slope));
    x = _mm512_add_ps(x, _mm512_loadu_ps(shift_out));
    _mm512_storeu_ps(output, x);
    return _mm512_cmp_ps_mask(x, _mm512_loadu_ps(threshold), _CMP_GE_OQ);
#else
    uint32_t bits = 0;
    for (int o = 0; o < BLOCK; o++) {
        float x = (float)(base[o] - 2 * differing[o]) * scale[o];
        x = x + residual[o];
        x = x + shift_in[o];
        output[o] = (x > 0.0f ? x : x * slope[o]) + shift_out[o];
    }
    for (int o = 0; o < BLOCK; o++)
        bits |= (uint32_t)(output[o] >= threshold[o]) << o;
    return bits;
#endif
}

/* 16 outputs of a 1x1 convolution on the shortcut, for `pixels` neighbours. */
#if defined(AVX512)
INLINE void project(const int pixels, const struct unit *u, int block, const value *in, value *out)
{
    const int in_pixel = u->in_blocks * BLOCK, out_pixel = u->blocks * BLOCK;
    const __m512 scale = _mm512_loadu_ps(u->projection_scale + block * BLOCK);
    __m512 sum[PIXELS];
    for (int p = 0; p < pixels; p++)
        sum[p] = _mm512_setzero_ps();
    if (u->projection != NULL) {
        const float *weights = u->projection + (size_t)block * (size_t)u->channels * BLOCK;
        for (int i = 0; i < u->channels; i++) {
            const __m512 weight = _mm512_loadu_ps(weights + i * BLOCK);
            for (int p = 0; p < pixels; p++)
                sum[p] = _mm512_fmadd_ps(_mm512_set1_ps(in[p * in_pixel + i]), weight, sum[p]);
        }
    } else {
        const uint16_t *signs = u->signs + (size_t)block * (size_t)u->channels;
        const uint16_t *survivors = u->survivors + (size_t)block * (size_t)u->channels;
        for (int i = 0; i < u->channels; i++) {
            const __mmask16 positive = signs[i], negative = (__mmask16)(survivors[i] & ~signs[i]);
            for (int p = 0; p < pixels; p++) {
                const __m512 x = _mm512_set1_ps(in[p * in_pixel + i]);
                sum[p] = _mm512_mask_add_ps(sum[p], positive, sum[p], x);
                sum[p] = _mm512_mask_sub_ps(sum[p], negative, sum[p], x);
            }
        }
    }
    for (int p = 0; p < pixels; p++)
        _mm512_storeu_ps(out + p * out_pixel, _mm512_mul_ps(sum[p], scale));
}
#else
INLINE void project(const int pixels, const struct unit *u, int block, const value *in, value *out)
{
    const int in_pixel = u->in_blocks * BLOCK, out_pixel = u->blocks * BLOCK;
    for (int p = 0; p < pixels; p++, in += in_pixel, out += out_pixel) {
        float sum[BLOCK] = {0};
        if (u->projection != NULL) {
            const float *weights = u->projection + (size_t)block * (size_t)u->channels * BLOCK;
            for (int i = 0; i < u->channels; i++)
                for (int o = 0; o < BLOCK; o++)
                    sum[o] = multiply_add(in[i], weights[i * BLOCK + o], sum[o]);
        } else {
            const uint16_t *signs = u->signs + (size_t)block * (size_t)u->channels;
            const uint16_t *survivors = u->survivors + (size_t)block * (size_t)u->channels;
            for (int i = 0; i < u->channels; i++)
                for (int o = 0; o < BLOCK; o++) {
                    if (signs[i] >> o & 1)
                        sum[o] = sum[o] + in[i];
                    else if (survivors[i] >> o & 1)
                        sum[o] = sum[o] - in[i];
                }
        }
        for (int o = 0; o < BLOCK; o++)
            out[o] = sum[o] * u->projection_scale[block * BLOCK + o];
    }
}
#endif

/* 16 outputs of the first layer for `pixels` neighbours, in each of which the same taps meet the image; see pixel_sums. */
#if STEM_OF_INTEGERS
INLINE void stem_sums(const int pixels, int block, const uint8_t *in, int rows, int taps, size_t tap, size_t place,
                      value *out)
{
    const int32_t *base = stem_base + place;
    const float *rest = stem_rest + place;
    int32_t upper[STEM_PIXELS * BLOCK], lower[STEM_PIXELS * BLOCK];
    pixel_sums(pixels, in, rows, taps, tap, upper, lower);
    for (int p = 0; p < pixels; p++, out += STEM_BLOCKS * BLOCK) {
#if defined(AVX512)
        const __m512i high = _mm512_sub_epi32(_mm512_loadu_si512(upper + p * BLOCK), _mm512_loadu_si512(base));
        const __m512 low = _mm512_cvtepi32_ps(_mm512_loadu_si512(lower + p * BLOCK));
        const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.0f), low);
        const __m512 scale = _mm512_loadu_ps(stem_scale + block * BLOCK);
        _mm512_storeu_ps(out, _mm512_fmadd_ps(both, scale, _mm512_loadu_ps(rest)));
#else
        for (int o = 0; o < BLOCK; o++) {
            const float high = (float)(upper[p * BLOCK + o] - base[o]), low = (float)lower[p * BLOCK + o];
            out[o] = multiply_add(multiply_add(high, 256.0f, low), stem_scale[block * BLOCK + o], rest[o]);
        }
#endif
    }
}
#else
INLINE void stem_sums(const int pixels, int block, const uint8_t *in, int rows, int taps, size_t tap, size_t place,
                      value *out)
{
    (void)place;
    for (int p = 0; p < pixels; p++, out += STEM_BLOCKS * BLOCK) {
        float sum[BLOCK] = {0};
        for (int row = 0; row < rows; row++)
            for (int t = 0; t < taps; t++) {
                const float *weights = stem_weights + tap + (size_t)(row * STEM_SIZE * CHANNELS + t) * BLOCK;
                const float pixel = (float)in[row * WIDTH * CHANNELS + p * STEM_STRIDE * CHANNELS + t];
                const float x = (pixel - stem_zero[t % CHANNELS]) * stem_factor[t % CHANNELS];
                for (int o = 0; o < BLOCK; o++)
                    sum[o] = multiply_add(x, weights[o], sum[o]);
            }
        for (int o = 0; o < BLOCK; o++)
            out[o] = sum[o] + stem_bias[block * BLOCK + o];
    }
}
#endif

/* Global average pooling, and the linear layer. */
static int classify(const value *x, int pixels, int pixel, float *features, float *logits)
{
    int best = 0;
    for (int i = 0; i < FEATURES; i++) {
        float sum = 0.0f;
        for (int p = 0; p < pixels; p++)
            sum = sum + x[p * pixel + i];
        features[i] = sum / (float)pixels;
    }
    for (int k = 0; k < CLASSES; k++) {
        float sum = 0.0f;
        for (int i = 0; i < FEATURES; i++)
            sum = multiply_add(features[i], classifier_weights[k * FEATURES + i], sum);
        logits[k] = sum + classifier_bias[k];
        if (logits[k] > logits[best])
            best = k;
    }
    return best;
}
